"""`cmerwatch checker evaluate` and `calibrate`: the worker's own path over files, resumable, and never quiet."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from cmerwatch import blobs, errors
from cmerwatch.settings import Settings
from cmerwatch_worker import bundle, checkers, commands, datasets, evaluation, offline
from tests.stack import wait_until
from tests.worker import images, stage
from toy_vlm import evaluation_set

SCENES = 30


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Labelled files of drawn scenes, as the bench writes them."""
    folder = tmp_path_factory.mktemp("drawn")
    evaluation_set.write(folder, SCENES)
    return folder


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """The command in this process: (status, stdout, stderr)."""

    def called(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["cmerwatch checker", *map(str, arguments)])
        try:
            status = commands.main()
        except SystemExit as ended:
            status = int(ended.code or 0)
        said = capsys.readouterr()
        return status, said.out, said.err

    return called


Run = Callable[..., tuple[int, str, str]]


def few(folder: Path, source: Path, count: int) -> Path:
    """The first rows of a file, as a file of its own."""
    path = folder / "few.jsonl"
    path.write_text("".join(source.read_text().splitlines(keepends=True)[:count]))
    return path


def test_the_demo_checker_is_measured_on_what_it_is_claimed_to_see(drawn: Path, tmp_path: Path, run: Run) -> None:
    status, out, _ = run("evaluate", drawn / "claimed.jsonl", "--checker", "demo", "--out", tmp_path)
    assert status == 0
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["overall"]["value"] >= 0.95
    assert report["overall"]["low"] < report["overall"]["value"] <= report["overall"]["high"]
    assert f"all                              {report['overall']['value']:.3f} [" in out
    assert {"object", "colour", "shape"} <= report["by_error_type"].keys()
    assert "<svg" in (tmp_path / "report.html").read_text()


def test_the_blind_spot_is_called_no_better_than_chance(drawn: Path, tmp_path: Path, run: Run) -> None:
    run("evaluate", drawn / "unclaimed.jsonl", "--checker", "demo", "--out", tmp_path)
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["by_error_type"]["relation"]["remark"] == "no better than chance here"


def test_its_scores_are_those_the_worker_gives_the_same_events(
    drawn: Path, tmp_path: Path, run: Run, committed: str, configured: Callable[..., Settings],
    blob_store: blobs.BlobStore,
) -> None:  # fmt: skip
    file = few(tmp_path, drawn / "foreign.jsonl", 12)
    run("evaluate", file, "--images", drawn, "--checker", "demo", "--out", tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()][1:]
    project = stage.new_project()
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    sent = [
        stage.send(blob_store, project, [(drawn / r["image"]).read_bytes()], r["output"], prompt_type=r["prompt_type"])
        for r in rows
    ]
    with stage.opened(configured(decode_processes=1), blob_store, checkers.load("demo")) as checking:
        checking.drain()
    for event_id, line in zip(sent, lines, strict=True):
        check = stage.check_of(event_id)
        assert (check["outcome"], check["similarity"], check["score"]) == (
            line["outcome"], pytest.approx(line["similarity"], abs=1e-6), pytest.approx(line["score"], abs=1e-6)
        )  # fmt: skip


def looking_at(file: Path, folder: Path, seen: list[int]) -> Callable[[], Sequence[evaluation.Scored]]:
    """A run of the real checker over a file that notes how many rows it was asked to look at."""

    class Noting(offline.Looking):
        def look(self, samples: Sequence[offline.Sample]):
            seen.append(len(samples))
            return super().look(samples)

    def go(show: evaluation.Progress = lambda done, total: None) -> Sequence[evaluation.Scored]:
        checker = checkers.load("demo")
        rows = datasets.read(file, "jsonl", folder).rows
        of = evaluation.origin(checker, file, "jsonl", folder)
        with Noting(checker, Settings()) as looking:
            return evaluation.run(looking, rows, file.with_name("rows.jsonl"), of, show)

    return go


def test_an_interrupted_run_goes_on_where_it_stopped(drawn: Path, tmp_path: Path) -> None:
    file, seen = few(tmp_path, drawn / "claimed.jsonl", 80), list[int]()
    go = looking_at(file, drawn, seen)

    def stop(done: int, total: int) -> None:
        if done == 50:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        go(stop)
    with (tmp_path / "rows.jsonl").open("a") as cut:
        cut.write('{"line":51,"outcome":"sco')
    resumed = go()
    assert go() == resumed, "the line that was cut short is gone, and nothing is left to do"
    assert seen == [80, 30, 0]
    assert [one.line for one in resumed] == list(range(1, 81))
    (tmp_path / "rows.jsonl").unlink()
    whole = go()
    assert [one.score for one in resumed] == pytest.approx([one.score for one in whole], abs=1e-6)


def test_a_process_that_is_killed_loses_no_row_it_has_written(drawn: Path, tmp_path: Path) -> None:
    sidecar = tmp_path / "rows.jsonl"
    command = [
        sys.executable, "-m", "cmerwatch_worker.commands", "evaluate", str(drawn / "claimed.jsonl"),
        "--checker", "demo", "--out", str(tmp_path),
    ]  # fmt: skip
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait_until(lambda: sidecar.exists() and sidecar.read_text().count("\n") > 20)
    process.send_signal(signal.SIGKILL)
    process.wait()
    held = sidecar.read_text().splitlines()[1:21]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert sidecar.read_text().splitlines()[1:21] == held
    assert "AUROC" in done.stdout


def test_two_runs_never_write_into_one_file(drawn: Path, tmp_path: Path, run: Run) -> None:
    file, seen = few(tmp_path, drawn / "claimed.jsonl", 10), list[int]()
    go = looking_at(file, drawn, seen)

    def meddle(done: int, total: int) -> None:
        if done == 5:
            with pytest.raises(errors.StartRefused, match="another run is writing"):
                go()

    assert len(go(meddle)) == 10


def test_an_interruption_by_hand_is_told_how_to_go_on(
    drawn: Path, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(bar: commands.Bar, done: int, total: int) -> None:
        if done > 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(commands.Bar, "show", interrupted)
    status, _, err = run("evaluate", drawn / "claimed.jsonl", "--checker", "demo", "--out", tmp_path)
    assert status == 130
    assert "the same command goes on from here" in err
    assert (tmp_path / "rows.jsonl").read_text().count("\n") == 5


@pytest.mark.parametrize("change", ["file", "checker", "images"])
def test_a_changed_file_checker_or_folder_is_noticed(drawn: Path, tmp_path: Path, run: Run, change: str) -> None:
    file = few(tmp_path, drawn / "claimed.jsonl", 20)
    shutil.copytree(drawn / "images", tmp_path / "images")
    out = tmp_path / "out"
    assert run("evaluate", file, "--checker", "demo", "--out", out)[0] == 0
    other = {"file": "labelled file", "checker": "another checker", "images": "folder of images"}[change]
    spec, arguments = "demo", list[object]()
    if change == "file":
        file.write_text(file.read_text() + file.read_text().splitlines()[0])
    elif change == "checker":
        copied = shutil.copytree(bundle.DEMO, tmp_path / "bundle")
        manifest = json.loads((copied / "manifest.json").read_text())
        (copied / "manifest.json").write_text(json.dumps({**manifest, "weights": "other"}))
        spec = f"bundle:{copied}"
    else:
        arguments = ["--images", drawn]
    status, _, err = run("evaluate", file, "--checker", spec, "--out", out, *arguments)
    assert status == 2
    assert other in err
    assert "--restart" in err
    assert run("evaluate", file, "--checker", spec, "--out", out, "--restart", *arguments)[0] == 0


def test_bad_lines_are_told_and_the_rest_is_measured(drawn: Path, tmp_path: Path, run: Run) -> None:
    file = few(tmp_path, drawn / "claimed.jsonl", 20)
    (tmp_path / "broken.png").write_bytes(images.encoded(images.scene())[:200])
    (tmp_path / "no.png").write_bytes(b"<svg/>")
    row = {"output": "A red circle.", "label": "correct"}
    bad = [json.dumps({**row, "image": name}) for name in ("broken.png", "no.png", "nowhere.png")]
    shutil.copytree(drawn / "images", tmp_path / "images")
    file.write_text(file.read_text() + "\n".join(["{", *bad]) + "\n")
    status, out, _ = run("evaluate", file, "--checker", "demo")
    assert status == 0
    assert "2 bad lines, not evaluated" in out
    assert "line 21: is not JSON" in out
    assert "line 24: there is no image file" in out
    assert "not scored, correct: 1 invalid_image, 1 refused" in out
    assert "SVG" in out
    assert (tmp_path / "few.jsonl.evaluation" / "report.html").exists()


def test_a_file_without_a_single_row_is_refused(tmp_path: Path, run: Run) -> None:
    (tmp_path / "empty.jsonl").write_text("\n")
    assert run("evaluate", tmp_path / "empty.jsonl", "--checker", "demo")[2].endswith("it has no lines\n")
    (tmp_path / "bad.jsonl").write_text("{\n")
    status, _, err = run("evaluate", tmp_path / "bad.jsonl", "--checker", "demo")
    assert status == 2
    assert "line 1: is not JSON" in err


def test_outputs_of_one_kind_alone_have_no_auroc_and_say_so(drawn: Path, tmp_path: Path, run: Run) -> None:
    lines = [line for line in (drawn / "foreign.jsonl").read_text().splitlines() if '"correct"' in line]
    (tmp_path / "correct.jsonl").write_text("\n".join(lines[:10]))
    status, out, _ = run("evaluate", tmp_path / "correct.jsonl", "--images", drawn, "--checker", "demo")
    assert status == 0
    assert "not measured: it needs correct and hallucinated outputs" in out


def test_yes_and_no_are_judged_as_the_statements_they_make(drawn: Path, tmp_path: Path, run: Run) -> None:
    arguments = ("--format", "pope", "--checker", "demo")
    run("evaluate", drawn / "pope.json", *arguments, "--out", tmp_path / "assumed")
    assumed = json.loads((tmp_path / "assumed" / "report.json").read_text())
    assert assumed["overall"]["value"] > 0.95
    assert assumed["denials"] == 0
    answers = drawn / "answers.jsonl"
    run("evaluate", drawn / "pope.json", *arguments, "--answers", answers, "--out", tmp_path / "answered")
    answered = json.loads((tmp_path / "answered" / "report.json").read_text())
    assert answered["overall"]["value"] > 0.85
    assert answered["denials"] == answers.read_text().count('"No"')


def test_public_formats_are_evaluated_by_the_same_command(drawn: Path, tmp_path: Path, run: Run) -> None:
    rows = [json.loads(line) for line in (drawn / "claimed.jsonl").read_text().splitlines()[:40]]
    names = sorted({row["image"] for row in rows})
    foil = {
        "images": [{"id": names.index(name), "file_name": name} for name in names],
        "annotations": [
            {"image_id": names.index(r["image"]), "caption": r["output"], "foil": r["label"] != "correct",
             "foil_word": "ORIG", "foil_id": i}
            for i, r in enumerate(rows)
        ],
    }  # fmt: skip
    (tmp_path / "foil.json").write_text(json.dumps(foil))
    arguments = ("--format", "foil", "--images", drawn, "--checker", "demo")
    status, out, _ = run("evaluate", tmp_path / "foil.json", *arguments)
    assert status == 0
    assert "error type object" in out


def test_a_picture_that_kills_its_decoder_is_quarantined_and_its_neighbours_scored(
    drawn: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "deadly.png").write_bytes((drawn / "images/scene-00000.png").read_bytes() + stage.MARK)
    monkeypatch.setattr("cmerwatch_worker.decode_pool.Pool.__init__.__defaults__", (stage.FRAGILE,))
    samples = [
        offline.Sample((drawn / "images/scene-00000.png",), "A red circle."),
        offline.Sample((tmp_path / "deadly.png",), "A red circle."),
    ]
    with offline.Looking(checkers.load("demo"), Settings()) as looking:
        found = [one.result for one in looking.look(samples)]
    assert [one.outcome for one in found if one] == ["scored", "quarantined"]
    assert found[1] is not None
    assert found[1].reasons == ("decode_crash",)


# calibrate


@pytest.fixture(scope="module")
def pairs(drawn: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Matched pairs of three prompt types, and of one too rare for an entry of its own."""
    folder = tmp_path_factory.mktemp("pairs")
    evaluation_set.write(folder, 520, seed=8)
    rows = [json.loads(line) for line in (folder / "foreign.jsonl").read_text().splitlines()]
    matched = [row for row in rows if row["label"] == "correct" and row["prompt_type"] != "count"]
    rare = [{**row, "prompt_type": "rare", "output": f"{row['output']} "} for row in matched[:40]]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in matched + rare))
    return folder / "pairs.jsonl"


def test_a_bundle_takes_a_new_reference_and_keeps_its_promise_on_fresh_pairs(
    pairs: Path, drawn: Path, tmp_path: Path, run: Run
) -> None:
    status, out, _ = run("calibrate", "demo", pairs, "--out", tmp_path / "mine")
    assert status == 0
    before, after = checkers.load("demo"), checkers.load(f"bundle:{tmp_path / 'mine'}")
    assert before.reference is not None
    assert after.reference is not None
    assert after.reference.version != before.reference.version
    assert after.reference.version in out
    assert after.reference.own.keys() == {"", "identify", "describe"}
    assert re.search(r"rare: \d\d claims, in the pool", out)
    run("evaluate", drawn / "foreign.jsonl", "--checker", f"bundle:{tmp_path / 'mine'}", "--out", tmp_path / "out")
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["checker"]["reference"] == after.reference.version
    assert report["correct_flagged"]["low"] < 0.08
    assert report["hallucinated_flagged"]["value"] > 0.9


def test_wrong_outputs_among_the_pairs_are_left_out_and_counted(pairs: Path, tmp_path: Path, run: Run) -> None:
    wrong = [{**json.loads(line), "label": "hallucinated"} for line in pairs.read_text().splitlines()[:7]]
    file = pairs.with_name("mixed.jsonl")
    file.write_text(pairs.read_text() + "".join(json.dumps(row) + "\n" for row in wrong))
    _, _, err = run("calibrate", "demo", file, "--out", tmp_path / "mine")
    assert "7 pairs gave no claims: labelled as not correct" in err


def test_too_few_pairs_make_no_reference(drawn: Path, tmp_path: Path, run: Run) -> None:
    file = few(tmp_path, drawn / "foreign.jsonl", 30)
    status, _, err = run("calibrate", "demo", file, "--images", drawn, "--out", tmp_path / "mine")
    assert status == 2
    assert "a reference needs 500" in err
    assert not (tmp_path / "mine").exists()


def test_the_installations_own_bundle_is_not_changed(drawn: Path, tmp_path: Path, run: Run) -> None:
    status, _, err = run("calibrate", "demo", few(tmp_path, drawn / "foreign.jsonl", 30), "--images", drawn)
    assert status == 2
    assert "--out" in err


def test_a_reference_is_replaced_in_place_and_an_interrupted_change_never_loads(pairs: Path, tmp_path: Path) -> None:
    copied = Path(shutil.copytree(bundle.DEMO, tmp_path / "bundle"))
    held = bundle.load(copied)
    assert held.reference is not None
    (copied / "reference.json").write_text((copied / "reference.json").read_text() + " ")
    with pytest.raises(errors.StartRefused, match=r"reference\.json is not the file"):
        bundle.load(copied)
    bundle.write_manifest(copied, held.manifest)
    bundle.replace_reference(copied, held.reference)
    again = bundle.load(copied).reference
    assert again is not None
    assert again.version == held.reference.version


# what is refused, and when


@pytest.mark.parametrize("out", ["/proc/nowhere", "{file}"])
def test_a_folder_that_takes_no_files_is_refused_before_anything_is_scored(
    drawn: Path, tmp_path: Path, run: Run, out: str
) -> None:
    file = few(tmp_path, drawn / "foreign.jsonl", 30)
    where = out.format(file=file)
    for command in (("evaluate", file, "--checker", "demo"), ("calibrate", "demo", file)):
        status, _, err = run(*command, "--images", drawn, "--out", where)
        assert status == 2
        assert "with --out" in err
        assert "ing: " not in err, "no progress was shown"
    assert file.read_text().count("\n") == 30


def test_pairs_of_which_none_can_be_used_are_refused_with_the_first_reasons(tmp_path: Path, run: Run) -> None:
    (tmp_path / "pairs.jsonl").write_text('{"image": "gone.png", "output": "A red circle."}\n{"image": "a.png", "out\n')
    status, _, err = run("calibrate", "demo", tmp_path / "pairs.jsonl", "--out", tmp_path / "mine")
    assert status == 2
    assert "has nothing to calibrate with; line 1: there is no image file" in err
    assert "line 2: is not JSON: Unterminated string starting at column 20" in err
    status, _, err = run(
        "calibrate", "demo", tmp_path / "pairs.jsonl", "--images", tmp_path / "x", "--out", tmp_path / "m"
    )
    assert (status, "there is no folder of images" in err) == (2, True)


def test_a_folder_that_is_no_bundle_is_named_before_its_pairs_are_read(tmp_path: Path, run: Run) -> None:
    status, _, err = run("calibrate", tmp_path / "nothing", tmp_path / "nothing.jsonl")
    assert status == 2
    assert "is no checker bundle" in err


def test_a_calibration_interrupted_by_hand_changes_nothing_and_says_so(
    pairs: Path, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(bar: commands.Bar, done: int, total: int) -> None:
        if done > 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(commands.Bar, "show", interrupted)
    mine = Path(shutil.copytree(bundle.DEMO, tmp_path / "mine"))
    before = (mine / "reference.json").read_bytes()
    status, _, err = run("calibrate", mine, pairs)
    assert (status, err.splitlines()[-1]) == (130, "cmerwatch: interrupted; nothing was changed")
    assert (mine / "reference.json").read_bytes() == before
    status, _, _ = run("calibrate", mine, pairs, "--out", tmp_path / "copy")
    assert status == 130
    assert not (tmp_path / "copy").exists()
