"""Pages for readers and contributors: what they name is there, and the site is built of them."""

from __future__ import annotations

import ast
import copy
import importlib
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import torch
import torchvision
import yaml
from torch.utils.data import DataLoader

import antigram
from antigram.cache.plan import plan_layers
from antigram.model.loss.sources import TapSpec
from antigram.model.nets.arch import Arch
from antigram.model.nets.vgg import Vgg
from antigram.model.training.checkpoint import Teacher
from antigram.studies.verify import verify
from tests.support import corpus_trees

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("changes/*.md")])
PAGE = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
# Notes that lie beside the repository: a reader of the repository has them not.
_NOTES = re.compile(r"\b(METHOD|CORPORA|DESIGN|PAPER|STYLE|SCALE|PEERS)\.md|\.\./" + "shared/")


@PAGE
def test_links_of_a_page_lead_to_files(page):
    text = page.read_text()
    links = {page.parent / link for link in re.findall(r"\]\((?![a-z]+:|#)([^)\s#]+)", text)}
    included = {page.parent / path for path in re.findall(r"^```\{include\} (\S+)", text, re.M)}
    assert not {str(path) for path in links | included if not path.exists()}


def test_tests_that_are_named_for_promises_are_there():
    named = re.findall(r"`(tests/[\w/.]+)`", (ROOT / "docs" / "architecture.md").read_text())
    assert len(named) > 20
    assert not [path for path in named if not (ROOT / path).is_file()]


def test_every_page_of_docs_is_in_the_sites_table_of_contents():
    listed = (ROOT / "docs" / "index.md").read_text().partition("{toctree}")[2].split()
    assert {page.stem for page in (ROOT / "docs").glob("*.md")} - {"index"} <= set(listed)


def test_nothing_points_to_notes_that_are_not_in_the_repository():
    named = "antigram pipeline model cache studies tests benchmarks docs changes examples .github"
    folders = named.split()
    files = [p for folder in folders for p in (ROOT / folder).rglob("*")] + [*ROOT.glob("*.*")]
    kinds = (".py", ".md", ".toml", ".yml", ".html", ".cff")
    texts = [p for p in files if p.suffix in kinds and "_build" not in p.parts]
    assert texts
    assert not [p for p in texts if p.is_file() and _NOTES.search(p.read_text("utf-8"))]


def test_the_reference_has_every_public_name_and_all_it_names_is_there():
    page = (ROOT / "docs" / "api.md").read_text()
    errors = importlib.import_module("antigram.pipeline.errors").__all__
    named = re.findall(r"^\.\. auto(?:class|function):: (\S+)$", page, re.MULTILINE)
    assert len(named) == len(set(named))
    for name in named:
        module, _, own = name.rpartition(".")
        assert getattr(importlib.import_module(module), own).__doc__
    assert set(antigram.__all__) <= {name.rpartition(".")[2] for name in named} | set(errors)


def test_the_examples_of_the_reference_run_as_they_stand(tmp_path, monkeypatch, capsys):
    corpus_trees.fsdd(tmp_path / "corpora" / "fsdd")
    monkeypatch.chdir(tmp_path)
    page = (ROOT / "docs" / "api.md").read_text()
    for code in re.findall(r"```python\n(.*?)```", page, re.DOTALL):
        exec(compile(code, "docs/api.md", "exec"), {})  # noqa: S102 - our own page
        assert 0 <= float(capsys.readouterr().out) <= 1


def test_the_code_of_the_page_for_ones_own_model_runs_as_it_stands(tmp_path, monkeypatch, capsys):
    recordings = corpus_trees.demo(tmp_path / "recordings")
    workspace = antigram.Workspace(tmp_path / "workspace")
    store = antigram.prepare_corpus(
        workspace, "demo", source=recordings, name="words", workers=1
    ).store
    arch = Arch("vgg16", 64)  # 256 channels at layer 5, as layer3 of a ResNet has
    teacher = Teacher(arch, Vgg(arch, 0).state_dict(), "")
    plans = plan_layers(store, teacher, TapSpec(arch=arch, layers=(5,)))
    cache = tmp_path / "workspace" / "grams" / "words--speaker.zarr"
    antigram.build_cache(store, teacher, plans, cache, made_from={}, device=torch.device("cpu"))
    net = torchvision.models.resnet18(num_classes=2)
    net.conv1 = torch.nn.Conv2d(1, 64, 7, stride=2, padding=3)
    before, weights = list(net.state_dict()), net.fc.weight.clone()
    names = {
        "net": net,
        "teacher": copy.deepcopy(net),
        "optimiser": torch.optim.SGD(net.parameters(), 0.01),
        "loader": DataLoader(antigram.SegmentDataset(store), 4),
    }
    monkeypatch.chdir(tmp_path)
    page = (ROOT / "docs" / "library.md").read_text()
    for code in re.findall(r"```python\n(.*?)```", page, re.DOTALL):
        exec(compile(code, "docs/library.md", "exec"), names)  # noqa: S102 - our own page
    assert list(net.state_dict()) == before
    assert not torch.equal(net.fc.weight, weights)
    assert verify(tmp_path / "workspace" / "grams" / "own.zarr") == []
    similarities = ast.literal_eval(capsys.readouterr().out)
    assert similarities["a"] == similarities["b"] > 0


def test_the_citation_has_what_a_citation_needs():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert {"cff-version", "message", "title", "authors"} <= set(citation)
    assert citation["version"] == PROJECT["project"]["version"]
    assert citation["license"] == PROJECT["project"]["license"]
    (paper,) = citation["references"]
    assert [author["family-names"] for author in paper["authors"]] == ["Guizzo", "Weyde", "Tarroni"]
    assert (paper["year"], paper["doi"]) == (2021, "10.1016/j.neunet.2021.05.012")


def test_changes_are_of_a_kind_that_the_changelog_has():
    kinds = {kind["directory"] for kind in PROJECT["tool"]["towncrier"]["type"]}
    fragments = [
        p for p in (ROOT / "changes").iterdir() if p.name not in ("README.md", "TEMPLATE.jinja")
    ]
    for fragment in fragments:
        assert re.fullmatch(rf"\d+\.({'|'.join(kinds)})\.md", fragment.name)
        assert fragment.read_text().strip()
    assert PROJECT["tool"]["towncrier"]["start_string"] in (ROOT / "CHANGELOG.md").read_text()


def test_the_workflow_tests_every_python_that_is_supported():
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "test.yml").read_text())
    tested = workflow["jobs"]["test"]["strategy"]["matrix"]["python"]
    least, above = re.findall(r"3\.(\d+)", PROJECT["project"]["requires-python"])
    assert tested == [f"3.{minor}" for minor in range(int(least), int(above))]


@pytest.mark.slow
def test_the_site_is_built_without_a_warning_and_asks_nobody(tmp_path):
    pytest.importorskip("sphinx", reason="make docs installs it")
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-b", "html"]
    done = subprocess.run(
        [*command, ROOT / "docs", "-d", tmp_path / "doctrees", tmp_path / "html"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    pages = {path.stem: path.read_text() for path in (tmp_path / "html").glob("*.html")}
    assert {page.stem for page in (ROOT / "docs").glob("*.md")} <= set(pages)
    loaded = re.compile(r"""(?:src|<link[^>]*href)=["'](?:https?:)?//""")
    assert not [name for name, page in pages.items() if loaded.search(page)]
    assert "--workspace" in pages["cli"]
    assert "antigram.FeatureStore" in pages["api"]
