"""`cmerwatch checker ...`: list, download, export, calibrate and evaluate checkers. Models are imported when used."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from cmerwatch import errors
from cmerwatch_worker import profiles

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
    from cmerwatch import settings
    from cmerwatch_worker import accuracy, accuracy_report, checkers, datasets, evaluation, offline

    configured = settings.current()
    found = datasets.read(file, kind, images, answers)
    if not found.rows:
        _complain_of_nothing(file, found)
    loaded = checkers.load(checker or configured.checker)
    folder = out or file.with_name(f"{file.name}.evaluation")
    folder.mkdir(parents=True, exist_ok=True)
    sidecar = folder / evaluation.SIDECAR
    if restart:
        sidecar.unlink(missing_ok=True)
    looking = offline.Looking(loaded, configured)
    try:
        of = evaluation.origin(loaded, file, kind, images, answers)
        scored = evaluation.run(looking, found.rows, sidecar, of, Bar("evaluating").show)
    finally:
        looking.close()
    rows = [accuracy.Row(labelled, one) for labelled, one in zip(found.rows, scored, strict=True)]
    report = accuracy_report.Report(file.name, loaded, found, accuracy.measure(rows))
    (folder / "report.json").write_text(accuracy_report.as_json(report))
    (folder / "report.html").write_text(accuracy_report.as_html(report), errors="replace")
    typer.echo(accuracy_report.as_text(report), nl=False)
    typer.echo(f"written: {folder / 'report.html'}, {folder / 'report.json'}")


def _complain_of_nothing(file: Path, found: datasets.Dataset) -> None:  # type: ignore[name-defined]  # noqa: F821
    """Raises StartRefused with the first reasons."""
    reasons = [f"line {bad.line}: {bad.why}" for bad in found.bad[:3]] or ["it has no lines"]
    raise errors.StartRefused(f"{file} has nothing to evaluate; {'; '.join(reasons)}")


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
