"""One import name: rooms are reached as ``antigram.ROOM``, and nothing imports the command line."""

import ast
import importlib
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from antigram import cli
from benchmarks.studies import results_page
from benchmarks.tables import docs_page, readme_with, reliability_page

ROOT = Path(__file__).resolve().parents[1]


ROOMS = ("pipeline", "model", "cache", "studies")
BARE = (*ROOMS, "cli")
# Each process tells that it is there, and which module it imports by a bare name.
_SITE = """import os, sys

def tell(what):
    with open({told!r}, "a") as file:
        file.write(f"{{os.getpid()}} {{what}}\\n")

tell("began")
sys.addaudithook(lambda event, args: event == "import" and args[0] in {bare!r} and tell(args[0]))
"""


@pytest.mark.parametrize("name", [*ROOMS, "cli"])
def test_names_resolve_inside_the_checkout(name):
    found = Path(str(importlib.import_module(f"antigram.{name}").__file__))
    assert found.resolve().is_relative_to(ROOT)
    assert not found.resolve().is_relative_to(ROOT / "tests")


def test_nothing_imports_the_command_line():
    pattern = re.compile(r"^\s*(?:from antigram import cli|(?:from|import) antigram\.cli)\b", re.M)
    sources = [p for name in ROOMS for p in (ROOT / name).rglob("*.py")]
    assert len(sources) > 20
    assert [p for p in sources if pattern.search(p.read_text())] == []


def test_a_room_is_imported_by_its_full_name_in_strings_too():
    bare = re.compile(
        r"""^\s*(?:from|import)\s+(?:pipeline|model|cache|studies|cli)\b"""
        r"""|["'](?:pipeline|model|cache|studies)(?:\.[a-z_0-9]+)+["']"""
        r"""|-m (?:pipeline|model|cache|studies)\b""",
        re.MULTILINE,
    )
    folders = (*ROOMS, "antigram", "tests", "benchmarks")
    sources = [ROOT / "cli.py", *(p for name in folders for p in (ROOT / name).rglob("*.py"))]
    assert [p for p in sources if p != Path(__file__) and bare.search(p.read_text())] == []


def imports_of(path):
    """Names of the modules that a file imports from, also inside its functions."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def test_what_tests_share_stands_in_their_support():
    """A file of tests is read alone: it imports from no other, and from no conftest."""
    shared = re.compile(r"tests\.(?:\w+\.)*(?:test_\w+|conftest)\b")
    files = list((ROOT / "tests").rglob("*.py"))
    assert len(files) > 100
    found = {str(p): [n for n in imports_of(p) if shared.match(n)] for p in files}
    assert {name: names for name, names in found.items() if names} == {}


def texts_of(path):
    """Yield the string literals of a module except docstrings; inserted values become ``{}``."""
    tree = ast.parse(path.read_text())
    parts, documented = set(), (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    for node in ast.walk(tree):
        if isinstance(node, documented) and isinstance(node.body[0], ast.Expr):
            parts.add(node.body[0].value)
        if isinstance(node, ast.JoinedStr):
            parts.update(node.values)
            yield "".join(
                getattr(part, "value", "{}") if is_text(part) else "{}" for part in node.values
            )
        elif is_text(node) and node not in parts:
            yield ast.literal_eval(node)


def is_text(node):
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


# They write or declare commands: those that the demo runs, and where to read on after a mistake.
WITH_OPTIONS = {
    "studies/commands.py": None,
    "studies/model_commands.py": None,
    "studies/click_options.py": None,
    "studies/demo.py": None,
    "studies/compare/estimate.py": None,
    "studies/compare/jobs.py": None,
    "studies/compare/runner.py": None,
    "studies/console.py": {"--help", "--workspace", "--json", "--verbose"},
}


def test_the_library_names_its_arguments_and_no_options():
    named = {}
    for path in (p for room in ROOMS for p in (ROOT / room).rglob("*.py")):
        found = {
            o for text in texts_of(path) for o in re.findall(r"(?<![-\w}])--[a-z{][-\w]*", text)
        }
        known = WITH_OPTIONS.get(str(path.relative_to(ROOT)), set())
        if known is not None and found - known:
            named[str(path)] = found
    assert named == {}


# No command calls these: their messages name arguments and methods of their own.
FROM_PYTHON_ALONE = (
    "model/loss/anti_transfer.py",
    "cache/building.py",
    "cache/from_loader.py",
    "cache/loaded.py",
    "cache/loader_teacher.py",
)


def names_of(path):
    """Names of the functions of a module, and of their arguments."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef):
            yield node.name
            yield from (a.arg for a in (*node.args.args, *node.args.kwonlyargs))


def test_what_messages_name_in_backquotes_is_an_option_or_a_command():
    """Else who types a command reads the name of an argument that no option is called after."""
    unknown = []
    of_python = {name for path in FROM_PYTHON_ALONE for name in names_of(ROOT / path)}
    for path in (p for room in ROOMS for p in (ROOT / room).rglob("*.py")):
        known = {*cli.app.commands, "{}"}
        if str(path.relative_to(ROOT)) in FROM_PYTHON_ALONE:
            known |= of_python
        for text in texts_of(path):
            if text.count("`") % 2:
                unknown.append((path.name, text))
            for quoted in re.findall(r"`([^`]+)`", text):
                first, *rest = quoted.split()
                is_argument = re.fullmatch(r"[a-z_]+(=.*)?", quoted) and quoted not in known
                if is_argument and not cli.app.in_options(f"`{quoted}`").startswith("--"):
                    unknown.append((path.name, quoted))
                if first == "antigram" and rest[0] not in known:
                    unknown.append((path.name, quoted))
    assert unknown == []


def test_importing_the_package_loads_no_torch_and_finds_its_public_names():
    code = (
        "import sys, antigram; loaded = {'torch', 'zarr', 'numpy'} & set(sys.modules);"
        "missing = [n for n in antigram.__all__ if not callable(getattr(antigram, n))];"
        "print(antigram.__version__); sys.exit(bool(loaded or missing))"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def test_importing_the_command_line_loads_no_torch():
    code = "import sys, antigram.cli; sys.exit('torch' in sys.modules or 'zarr' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


@pytest.mark.parametrize("start", [["cli.py"], ["-m", "antigram"]], ids=" ".join)
def test_commands_and_their_workers_load_each_module_once(start, tmp_path, write_wav):
    """A second copy of a module has classes of its own, whose errors nobody catches."""
    for name in "ab":
        for take in range(3):
            write_wav(tmp_path / "own" / name / f"{take}.wav", np.full(800, 0.1 * take, "float32"))
    site = tmp_path / "site"
    site.mkdir()
    told = tmp_path / "told"
    (site / "sitecustomize.py").write_text(_SITE.format(told=str(told), bare=set(BARE)))
    command = [sys.executable, *start, "--workspace", tmp_path / "workspace", "prepare", "folder"]
    options = ["--source", tmp_path / "own", "--seconds", "0.05", "--workers", "2"]
    environment = {**os.environ, "PYTHONPATH": f"{site}:{os.environ.get('PYTHONPATH', '')}"}
    subprocess.run([*command, *options], cwd=ROOT, env=environment, check=True)
    lines = [line.split() for line in told.read_text().splitlines()]
    assert len({pid for pid, _ in lines}) >= 3  # the command and its workers
    assert {what for _, what in lines} == {"began"}


def test_the_numbers_of_the_readme_and_the_docs_are_those_of_the_results():
    readme = (ROOT / "README.md").read_text()
    assert readme_with(readme) == readme, "run python -m benchmarks.tables"
    page = (ROOT / "docs" / "benchmarks.md").read_text()
    assert docs_page() == page, "run python -m benchmarks.tables"
    damage = (ROOT / "docs" / "reliability.md").read_text()
    assert reliability_page() == damage, "run python -m benchmarks.tables"
    results = (ROOT / "docs" / "results.md").read_text()
    assert results_page() == results, "run python -m benchmarks.tables"
    linked = set(re.findall(r"\]\(\.\./(benchmarks/results/[^)]+)\)", page))
    assert len(linked) > 2
    assert all((ROOT / path).is_file() for path in linked)
