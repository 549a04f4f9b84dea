"""The rules of the house, as tests: layers, sizes, and what must never be written."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import cmerwatch

ROOT = Path(__file__).parents[2]
PRODUCT = ("cmerwatch", "worker/cmerwatch_worker", "web/cmerwatch_web", "migrations/env.py")
MAX_FILE, MAX_FUNCTION = 400, 60


def sources(*folders: str) -> list[Path]:
    paths = [ROOT / folder for folder in folders or PRODUCT]
    found = [file for path in paths for file in (sorted(path.rglob("*.py")) if path.is_dir() else [path])]
    assert found
    return found


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def calls(path: Path) -> Iterator[tuple[str, int]]:
    """Every call of a plain or dotted name, with its line."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name | ast.Attribute):
            yield ast.unparse(node.func), node.lineno


def imports(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def test_the_layers_hold() -> None:
    """The contracts of [tool.importlinter]: edges on stages on models on db, and stages never on each other."""
    program = Path(sys.executable).parent / "lint-imports"
    ran = subprocess.run([program, "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr


def test_no_file_is_longer_than_400_lines() -> None:
    long = {name(path): lines for path in sources() if (lines := len(path.read_text().splitlines())) > MAX_FILE}
    assert long == {}


def test_no_function_is_longer_than_60_lines() -> None:
    long = {}
    for path in sources():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = (node.end_lineno or 0) - node.lineno + 1
                if lines > MAX_FUNCTION:
                    long[f"{name(path)}: {node.name}"] = lines
    assert long == {}


def test_templates_escape_everything() -> None:
    """Text from models and users is hostile: nothing may call itself safe or turn escaping off."""
    templates = sorted((ROOT / "web/cmerwatch_web/templates").rglob("*.html"))
    assert templates
    unsafe = re.compile(r"\|\s*safe\b|autoescape\s+false|\{\{[^}]*\bMarkup\b")
    assert [name(path) for path in templates if unsafe.search(path.read_text())] == []


FORBIDDEN_CALLS = re.compile(
    r"eval|exec|__import__|(c?[Pp]ickle|marshal|shelve|dill|joblib)\.\w+|yaml\.load|os\.(system|popen)|tempfile\.mktemp"
)


def test_nothing_evaluates_or_unpickles() -> None:
    found = [
        f"{name(p)}:{line} {call}" for p in sources() for call, line in calls(p) if FORBIDDEN_CALLS.fullmatch(call)
    ]
    assert found == []


def test_no_shell_reads_a_command() -> None:
    for path in sources():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.keyword) and node.arg == "shell":
                assert isinstance(node.value, ast.Constant), name(path)
                assert not node.value.value, name(path)


def test_only_constants_and_serialised_trees_are_called_safe_markup() -> None:
    """A tree's serialiser escapes what it holds; a variable may hold what a model said."""
    for path in sources():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] == "Markup":
                assert name(path).startswith("web/"), f"{name(path)}:{node.lineno}"
                for argument in node.args:
                    escaped = isinstance(argument, ast.Constant) or ast.unparse(argument).startswith("ET.tostring(")
                    assert escaped, f"{name(path)}:{node.lineno} marks a variable as safe"


@pytest.mark.parametrize("framework", ["fastapi", "starlette", "jinja2", "torch", "open_clip", "onnxruntime", "numpy"])
def test_the_core_knows_no_framework(framework: str) -> None:
    users = [name(p) for p in sources("cmerwatch") if any(i.split(".")[0] == framework for i in imports(p))]
    assert users == []


def test_celery_appears_in_the_queue_and_the_worker_only() -> None:
    users = [name(p) for p in sources() if any(i.split(".")[0] in ("celery", "kombu") for i in imports(p))]
    allowed = ("cmerwatch/queue.py", "worker/")
    assert [user for user in users if not user.startswith(allowed)] == []


def test_the_sdk_needs_the_standard_library_and_itself_only() -> None:
    """It runs inside other people's processes. Hooks may import what they hook, inside a function."""
    for path in sources("cmerwatch/sdk"):
        for node in ast.parse(path.read_text()).body:
            names: list[str] = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                names = [node.module or ""]
            for imported in names:
                top = imported.split(".")[0]
                ours = imported == "cmerwatch" or imported.startswith("cmerwatch.sdk")
                assert top in sys.stdlib_module_names or ours, f"{name(path)} imports {imported}"


def test_the_core_never_commits() -> None:
    """Edges commit once. Partition DDL runs on a connection of its own, and migrations are DDL."""
    edges = ("cmerwatch/cli", "cmerwatch/demo.py", "cmerwatch/doctor.py", "cmerwatch/embedded", "cmerwatch/sdk")
    exceptions = ("cmerwatch/db.py", "cmerwatch/migrate.py")
    found = [
        f"{name(path)}:{line}"
        for path in sources("cmerwatch")
        if not name(path).startswith(edges + exceptions)
        for call, line in calls(path)
        if call.rpartition(".")[2] in ("commit", "rollback")
    ]
    assert found == []


def test_the_public_names_are_there_and_are_all() -> None:
    assert cmerwatch.__all__
    assert len(set(cmerwatch.__all__)) == len(cmerwatch.__all__)
    for public in cmerwatch.__all__:
        assert getattr(cmerwatch, public, None) is not None, public
    wanted = {"init", "record", "capture", "context", "flush", "shutdown", "stats"}
    assert wanted <= set(cmerwatch.__all__)


def test_importing_the_package_loads_nothing_but_the_standard_library() -> None:
    code = (
        "import sys; import cmerwatch; cmerwatch.record; "
        "print(*sorted({m.split('.')[0] for m in sys.modules} - set(sys.stdlib_module_names)))"
    )
    ran = subprocess.run([sys.executable, "-I", "-S", "-c", f"import sys; sys.path.insert(0, {str(ROOT)!r}); {code}"],
                         capture_output=True, text=True, check=True)  # fmt: skip
    assert set(ran.stdout.split()) <= {"cmerwatch", "__main__"}


def test_nobody_names_a_class_service_or_manager() -> None:
    vague = re.compile(r"(Service|Repository|Manager|Helper|Utils?|Processor)$")
    found = [
        f"{name(path)}: {node.name}"
        for path in sources()
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ClassDef) and vague.search(node.name)
    ]
    assert found == []


def test_a_python_that_is_too_old_is_named_and_leaves_nothing_behind(tmp_path: Path) -> None:
    old = tmp_path / "python3.10"
    pretend = 'import sys; sys.version_info = (3, 10, 4); sys.version = "3.10.4 (main)"; exec(sys.argv[1])'
    old.write_text(f'#!/bin/sh\n[ "$1" = -c ] && exec {sys.executable} -c \'{pretend}\' "$2"\nexit 99\n')
    old.chmod(0o755)
    command = ["make", "-C", str(ROOT), "demo", f"PYTHON={old}", f"DEMO_VENV={tmp_path / 'venv'}"]
    made = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert made.returncode != 0
    assert "needs Python 3.11 or newer; this is 3.10.4. Name another: make demo PYTHON=" in made.stderr
    assert not (tmp_path / "venv").exists()
