"""`cmerwatch checker ...`: list, download, export, calibrate and evaluate checkers. Models are imported when used."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cmerwatch import errors
from cmerwatch_worker import profiles

if TYPE_CHECKING:  # `list` and help are answered without numpy
    from cmerwatch_worker import calibration, datasets, parity
    from cmerwatch_worker.checkers.base import Checker
    from cmerwatch_worker.reference import Reference

LOCAL = "openclip-local:"
SHOWN_BAD = 20

app = typer.Typer(
    no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help="Checkers: what looks at images."
)


def main() -> int:
    """Refusals end with status 2 and one sentence on stderr, never a traceback."""
    try:
        app(prog_name="cmerwatch checker")
    except errors.CmerwatchError as error:
        say(error.message)
        return 2
    return 0


def say(line: str) -> None:
    """Progress and complaints; stdout is for results."""
    typer.echo(f"cmerwatch: {line}", err=True)


@app.command("list")
def list_command() -> None:
    """The profiles: what they download, under which licence, and which is the default."""
    rows = [("PROFILE", "CMERWATCH_CHECKER", "DOWNLOAD", "LICENCE", "FOR", "HERE")]
    for p in profiles.PROFILES:
        size = f"{p.megabytes} MB" if p.repository else "-"
        rows.append((p.name, p.spec, size, p.licence, p.role, profiles.state(p)))
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        typer.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


@app.command()
def download(name: Annotated[str, typer.Argument(metavar="MODEL:TAG")]) -> None:
    """Fetch a model's weights, once; afterwards it starts without a network."""
    model, tag = _model_and_tag(name)
    _warn_of_licence(name, profiles.licence_of(model, tag))
    with _needing("cmerwatch[torch]"):
        from cmerwatch_worker.checkers import openclip
    typer.echo(f"{openclip.download(model, tag)}")
    say(f"set CMERWATCH_CHECKER=openclip:{name} to score with it")


@app.command()
def export(
    name: Annotated[str, typer.Argument(metavar="MODEL:TAG", help="Or openclip-local:CONFIG.json:WEIGHTS.")],
    out: Annotated[Path, typer.Option(help="Folder of the bundle; new or empty.")],
    precision: Annotated[str, typer.Option(help="Of the stored weights: fp32, fp16 or int8.")] = "fp16",
    max_difference: Annotated[
        float | None, typer.Option(min=0, help="Largest allowed difference of a cosine; else 1e-4, 1e-3 or 1e-2.")
    ] = None,
    licence: Annotated[str, typer.Option(help="Of the weights, where it is not known here.")] = "",
    licence_file: Annotated[Path | None, typer.Option(help="Its text.")] = None,
    calibration: Annotated[Path | None, typer.Option(help="Matched pairs for the reference: JSON lines.")] = None,
    images: Annotated[Path | None, typer.Option(help="Folder of the pairs' pictures.")] = None,
) -> None:
    """Turn a model into a bundle that a light worker scores with on the CPU, without torch."""
    with _needing("cmerwatch[torch]"):
        from cmerwatch_worker import bundle, checkers, parity, publish
        from cmerwatch_worker.checkers import openclip

    if precision not in parity.LIMITS:
        raise errors.StartRefused(f"--precision {precision!r} is none of: {', '.join(parity.LIMITS)}")
    licence = licence or _known_licence(name)
    _warn_of_licence(name, licence)
    bundle.refuse_occupied(out)
    pairs = _pairs(calibration, images) if calibration else None
    say("exporting both towers; this takes a minute or two")
    full = checkers.load(name if name.startswith(LOCAL) else f"openclip:{name}")
    assert isinstance(full, openclip.OpenClip), "no other runtime answers these specs"
    limit = parity.LIMITS[precision] if max_difference is None else max_difference
    made = publish.publish(
        full.on_processor(), out, precision=precision, limit=limit, licence=licence,
        licence_text=_licence_text(name, licence, licence_file), said=_say_parity,
        calibrate=None if pairs is None else lambda checker: _reference(checker, pairs),
    )  # fmt: skip
    size = sum(path.stat().st_size for path in out.iterdir())
    typer.echo(f"{out}: {made.checker_id}, {size / 1e6:.1f} MB, licence {licence}")
    if pairs is None:
        say("it has no reference: it calibrates on its first traffic, or now with `cmerwatch checker calibrate`")
    say(f"set CMERWATCH_CHECKER=bundle:{out.resolve()} to score with it")


@app.command()
def calibrate(
    name: Annotated[str, typer.Argument(metavar="BUNDLE", help="Folder of a bundle, or demo.")],
    file: Annotated[Path, typer.Argument(help="JSON lines of image and output that match; prompt, prompt_type.")],
    images: Annotated[Path | None, typer.Option(help="Folder of the pictures; else the file's own.")] = None,
    out: Annotated[Path | None, typer.Option(help="Write a copy there instead of changing the bundle.")] = None,
) -> None:
    """Give a bundle a reference: what claims that are true of their pictures score."""
    with _needing("cmerwatch[worker]"):
        from cmerwatch_worker import bundle, calibration

    folder = bundle.DEMO if name == "demo" else Path(name.removeprefix("bundle:"))
    bundle.read_manifest(folder)
    pairs = _pairs(file, images)
    with _interruptible("nothing was changed"):
        made = calibration.recalibrate(folder, out, lambda checker: _reference(checker, pairs))
    typer.echo(f"{out or folder}: {made.checker_id} has a new reference")


@app.command()
def evaluate(
    file: Annotated[Path, typer.Argument(help="Labelled outputs: JSON lines, or a file of --format.")],
    kind: Annotated[str, typer.Option("--format", help="jsonl, pope, foil, mhaldetect or hallusionbench.")] = "jsonl",
    images: Annotated[Path | None, typer.Option(help="Folder of the pictures; else the file's own.")] = None,
    answers: Annotated[Path | None, typer.Option(help="A model's answers to POPE's questions.")] = None,
    checker: Annotated[str, typer.Option(help="As CMERWATCH_CHECKER, which is the default.")] = "",
    out: Annotated[Path | None, typer.Option(help="Folder of rows and reports; else beside the file.")] = None,
    restart: Annotated[bool, typer.Option(help="Forget an earlier run's rows.")] = False,
) -> None:
    """Measure a checker on labelled outputs: AUROC with intervals, precision and recall, reliability.

    Interrupted, it goes on where it stopped when called again.
    """
    with _needing("cmerwatch[worker]"):
        from cmerwatch import settings
        from cmerwatch_worker import accuracy, accuracy_report, bundle, checkers, datasets, evaluation, offline

    configured = settings.current()
    found = datasets.read(file, kind, images, answers)
    if not found.rows:
        _complain_of_nothing(file, found, "evaluate")
    folder = out or file.with_name(f"{file.name}.evaluation")
    bundle.require_writable(folder)
    loaded = checkers.load(checker or configured.checker)
    if configured.contrast:
        say("CMERWATCH_CONTRAST is on; this measures the checker without contrast sets")
    sidecar = folder / evaluation.SIDECAR
    if restart:
        sidecar.unlink(missing_ok=True)
    of = evaluation.origin(loaded, file, kind, images, answers)
    with _interruptible("the same command goes on from here"), offline.Looking(loaded, configured) as looking:
        scored = evaluation.run(looking, found.rows, sidecar, of, Bar("evaluating").show)
    rows = [accuracy.Row(labelled, one) for labelled, one in zip(found.rows, scored, strict=True)]
    report = accuracy_report.Report(file.name, loaded, found, accuracy.measure(rows))
    (folder / "report.json").write_text(accuracy_report.as_json(report))
    (folder / "report.html").write_text(accuracy_report.as_html(report), errors="replace")
    typer.echo(accuracy_report.as_text(report), nl=False)
    typer.echo(f"written: {folder / 'report.html'}, {folder / 'report.json'}")


@contextlib.contextmanager
def _interruptible(said: str) -> Iterator[None]:
    """Ctrl-C ends with what it means for the work so far, not with a traceback."""
    try:
        yield
    except KeyboardInterrupt:
        say(f"interrupted; {said}")
        raise typer.Exit(130) from None


@contextlib.contextmanager
def _needing(extra: str) -> Iterator[None]:
    """Imports that an installation may lack."""
    try:
        yield
    except ImportError as error:
        raise errors.StartRefused(f"this needs the package {error.name}; run: pip install '{extra}'") from error


def _model_and_tag(name: str) -> tuple[str, str]:
    model, _, tag = name.removeprefix("openclip:").rpartition(":")
    if not model or not tag:
        raise errors.StartRefused(f"{name!r} must be MODEL:TAG, for example ViT-B-32-256:datacomp_s34b_b86k")
    return model, tag


def _known_licence(name: str) -> str:
    found = None if name.startswith(LOCAL) else profiles.licence_of(*_model_and_tag(name))
    if found is None:
        raise errors.StartRefused(
            f"the licence of {name} is not known here; read it where the weights are published and add --licence NAME"
        )
    return found


def _licence_text(name: str, licence: str, file: Path | None) -> str:
    if file is None:
        return f"Weights: {name}\nLicence: {licence}, as named when this bundle was exported.\n"
    try:
        return file.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise errors.StartRefused(f"{file} cannot be read: {error}") from error


def _warn_of_licence(name: str, licence: str | None) -> None:
    if licence is None:
        say(f"warning: the licence of {name} is not known here; read it where the weights are published")
    elif warning := profiles.warning(name, licence):
        say(f"warning: {warning}")


def _say_parity(found: parity.Parity) -> None:
    say(
        f"parity with the model: image-text cosines within {found.cosine:.1e}; "
        f"vectors within {found.image:.1e} (images), {found.text:.1e} (texts)"
    )


def _pairs(file: Path, images: Path | None) -> datasets.Dataset:
    """Matched pairs; a line without a label is one. Bad lines are named. errors.StartRefused: there is none."""
    from cmerwatch_worker import datasets

    found = datasets.jsonl(file, datasets.folder_of(file, images), default_label=datasets.CORRECT)
    if not found.rows:
        _complain_of_nothing(file, found, "calibrate with")
    for bad in found.bad[:SHOWN_BAD]:
        say(f"{file.name} line {bad.line}, not used: {bad.why}")
    if len(found.bad) > SHOWN_BAD:
        say(f"{len(found.bad)} lines of {file.name} were not used in all")
    return found


def _reference(checker: Checker, pairs: datasets.Dataset) -> Reference:
    """Score the pairs without a reference and freeze what they say."""
    from cmerwatch import settings
    from cmerwatch_worker import calibration, offline

    with offline.Looking(checker, settings.current(), calibrating=True) as looking:
        made = calibration.from_pairs(looking, pairs, Bar("calibrating").show)
    for why, count in made.unused.items():
        say(f"{count} pairs gave no claims: {why}")
    for kind, count in sorted(made.claims.items()):
        typer.echo(f"  {kind or '(no prompt type)'}: {count} claims{_place(made, kind)}")
    typer.echo(f"reference {made.reference.version}")
    return made.reference


def _place(made: calibration.Calibrated, kind: str) -> str:
    return "" if kind in made.reference.own and kind else ", in the pool that stands for all other prompt types"


def _complain_of_nothing(file: Path, found: datasets.Dataset, what: str) -> None:
    """Raises StartRefused with the first reasons."""
    reasons = [f"line {bad.line}: {bad.why}" for bad in found.bad[:3]] or ["it has no lines"]
    raise errors.StartRefused(f"{file} has nothing to {what}; {'; '.join(reasons)}")


class Bar:
    """A progress bar on stderr; off a terminal one line per quarter."""

    def __init__(self, label: str) -> None:
        self._label, self._said = label, -1

    def show(self, done: int, total: int) -> None:
        if sys.stderr.isatty():
            filled = 30 * done // max(total, 1)
            typer.echo(f"\r{self._label:15} [{'#' * filled}{' ' * (30 - filled)}] {done}/{total}", err=True, nl=False)
            if done == total:
                typer.echo("", err=True)
        elif total and 4 * done // total > self._said:
            self._said = 4 * done // total
            say(f"{self._label}: {done}/{total}")


if __name__ == "__main__":
    sys.exit(main())
