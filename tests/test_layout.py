"""The four top names are this checkout's, and nothing imports the command line."""

import importlib
import re
from pathlib import Path

import pytest

from benchmarks.tables import docs_page, readme_with, reliability_page

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize("name", ["pipeline", "model", "cache", "cli"])
def test_names_resolve_inside_the_checkout(name):
    found = Path(importlib.import_module(name).__file__)
    assert found.is_relative_to(ROOT)
    assert not found.is_relative_to(ROOT / "tests")


def test_nothing_imports_the_command_line():
    pattern = re.compile(r"^\s*(?:from|import) cli\b", re.MULTILINE)
    sources = [p for name in ("pipeline", "model", "cache") for p in (ROOT / name).rglob("*.py")]
    assert len(sources) > 20
    assert [p for p in sources if pattern.search(p.read_text())] == []


def test_importing_the_command_line_loads_no_torch():
    import subprocess
    import sys

    code = "import sys, cli; sys.exit('torch' in sys.modules or 'zarr' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def test_the_numbers_of_the_readme_and_the_docs_are_those_of_the_results():
    readme = (ROOT / "README.md").read_text()
    assert readme_with(readme) == readme, "run python -m benchmarks.tables"
    page = (ROOT / "docs" / "benchmarks.md").read_text()
    assert docs_page() == page, "run python -m benchmarks.tables"
    damage = (ROOT / "docs" / "reliability.md").read_text()
    assert reliability_page() == damage, "run python -m benchmarks.tables"
    linked = set(re.findall(r"\]\(\.\./(benchmarks/results/[^)]+)\)", page))
    assert len(linked) > 2
    assert all((ROOT / path).is_file() for path in linked)
