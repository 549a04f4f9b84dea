"""The wheel: everything that runs from it is in it, nothing that is not ours, and the SDK alone stays light."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clean copy of what git tracks, built as a release would be."""
    folder = tmp_path_factory.mktemp("wheel")
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout
    for name in filter(None, tracked.decode().split("\0")):
        if (ROOT / name).is_file():
            (folder / "source" / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / "source" / name).write_bytes((ROOT / name).read_bytes())
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-cache-dir"]
    subprocess.run([*build, "--wheel-dir", folder, folder / "source"], check=True, capture_output=True)
    (made,) = folder.glob("*.whl")
    return made


def test_all_that_runs_is_inside_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as packed:
        inside = set(packed.namelist())
    wanted = {"cmerwatch/demo_data/events.jsonl.gz", "cmerwatch/demo_data/images.zip"}
    moved = {"migrations": "cmerwatch/_migrations", "web/cmerwatch_web": "cmerwatch_web"}
    moved |= {"worker/cmerwatch_worker": "cmerwatch_worker", "cmerwatch": "cmerwatch"}
    for folder, place in moved.items():
        tracked = subprocess.run(["git", "ls-files", folder], cwd=ROOT, capture_output=True, text=True, check=True)
        wanted |= {name.replace(folder, place, 1) for name in tracked.stdout.split() if (ROOT / name).exists()}
    ours = {name for name in inside if ".dist-info/" not in name}
    assert ours == wanted
    assert {"cmerwatch_worker/bundles/demo/image.onnx", "cmerwatch_web/templates/overview.html"} <= ours
    assert wheel.stat().st_size < 16_000_000


def test_the_base_install_is_the_sdk_and_loads_the_standard_library_only(wheel: Path) -> None:
    code = (
        f"import sys; sys.path.insert(0, {str(wheel)!r}); import cmerwatch; cmerwatch.record; "
        "print(cmerwatch.__file__, *sorted({m.split('.')[0] for m in sys.modules} - set(sys.stdlib_module_names)))"
    )
    ran = subprocess.run([sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True, check=True)
    file, *loaded = ran.stdout.split()
    assert file.startswith(str(wheel))
    assert set(loaded) <= {"cmerwatch", "__main__"}


def test_an_installed_wheel_finds_its_own_migrations_bundle_and_pages(wheel: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(wheel) as packed:
        packed.extractall(tmp_path)
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r}); "
        "from cmerwatch import demo_data, migrate; from cmerwatch_web.console import assets; "
        "from cmerwatch_worker import bundle; "
        "print(migrate.head(), bundle.load(bundle.DEMO).manifest.label, next(demo_data.recording()).endpoint, "
        "assets.url('app.css'), migrate.__file__)"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert str(tmp_path) in ran.stdout
    assert "demo: drawn scenes only" in ran.stdout
