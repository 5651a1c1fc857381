"""The contract of all adapters, tested on the ``tree`` in each adapter's test file.

It includes a copy of the template, made by the commands of docs/add-a-corpus.md.
"""

from __future__ import annotations

import importlib
import importlib.util
import re
import shutil
import subprocess
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import pytest

from antigram.pipeline.audio.noise import noise_files
from antigram.pipeline.corpora import CORPORA, find_corpus
from antigram.pipeline.corpus import Clip, Corpus, CorpusError, MixtureRequest, locate
from antigram.pipeline.errors import InputError
from antigram.pipeline.features.naming import recipe_for
from tests.support import corpus_trees
from tests.support.listings import rows_of

ROOT = Path(__file__).resolve().parents[2]
COPY = "birds"  # as in docs/add-a-corpus.md; not registered, unless the reader has just done so


@pytest.fixture(scope="module")
def copied(tmp_path_factory) -> Corpus:
    """The copy of the template, made by the commands of the page."""
    checkout = tmp_path_factory.mktemp("checkout")
    for path in ("pipeline/corpora/TEMPLATE.py", "tests/corpora/test_template.py"):
        (checkout / path).parent.mkdir(parents=True)
        shutil.copy(ROOT / path, checkout / path)
    page = (ROOT / "docs" / "add-a-corpus.md").read_text()
    commands = re.search(r"```sh\n(sed .*?)```", page, re.DOTALL)[1]
    subprocess.run(["sh", "-ec", commands], cwd=checkout, check=True)
    test = (checkout / "tests" / "corpora" / f"test_{COPY}.py").read_text()
    assert "from antigram.pipeline.corpora.birds import BIRDS\n" in test
    path = checkout / "pipeline" / "corpora" / f"{COPY}.py"
    spec = importlib.util.spec_from_file_location(COPY, path)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.BIRDS


@pytest.fixture(params=dict.fromkeys([*CORPORA, COPY]))
def corpus(request) -> Corpus:
    return CORPORA.get(request.param) or request.getfixturevalue("copied")


def module_of(name: str) -> str:
    return f"test_{name.replace('-', '_') if name in CORPORA else 'template'}"


@pytest.fixture(scope="module")
def homes(tmp_path_factory):
    """Trees of the corpora, each made at its first use."""
    made = {}

    def home(name: str):
        if name not in made:
            file = module_of(name)
            tree = importlib.import_module(f"tests.corpora.{file}").tree
            made[name] = tree(tmp_path_factory.mktemp(name) / "elsewhere" / "home")
        return made[name]

    return home


def listed(corpus, home) -> list[Clip]:
    """Return the clips with default options; of a mixed corpus, one minute of mixtures."""
    if corpus.list_mixtures is not None:
        noise = {label: len(paths) for label, paths in noise_files([home])[1].items()}
        options = {**corpus.options, "hours": "0.0166"}
        found = corpus.list_mixtures(
            MixtureRequest(
                clean=home / "clean_train",
                noise=noise,
                level=corpus.noise,
                seed=0,
                sample_rate=16_000,
                options=options,
            )
        )
    else:
        found = corpus.list_clips(home, dict(corpus.options))
    return [clip for clip in found if isinstance(clip, Clip)]


def root(corpus, home):
    """Return the folder that paths of clips are relative to."""
    return home / "clean_train" if corpus.list_mixtures is not None else home


def test_ids_are_unique_and_the_same_in_two_runs(corpus, homes):
    home = homes(corpus.name)
    clips = listed(corpus, home)
    assert len(clips) > 3
    assert len({clip.id for clip in clips}) == len(clips)
    assert listed(corpus, home) == clips


def test_paths_are_relative_and_there(corpus, homes):
    home = homes(corpus.name)
    for clip in listed(corpus, home):
        assert not clip.path.startswith("/")
        assert ".." not in clip.path.split("/")
        assert (root(corpus, home) / clip.path).is_file()
        assert not clip.path.rpartition("/")[2].startswith(".")


def test_ids_do_not_hold_the_place_where_the_corpus_lies(corpus, homes):
    home = homes(corpus.name)
    assert not any(str(home.parent.name) in clip.id for clip in listed(corpus, home))


def test_labels_are_those_announced_and_never_empty(corpus, homes):
    clips = listed(corpus, homes(corpus.name))
    for clip in clips:
        assert clip.labels
        assert all(clip.labels.values())
        if corpus.labels:
            assert set(clip.labels) <= set(corpus.labels)
    if corpus.labels:  # preparation leaves out clips without the main label
        assert any(corpus.labels[0] in clip.labels for clip in clips)


def test_an_official_split_is_whole_where_it_is_promised(corpus, homes):
    splits = {clip.split for clip in listed(corpus, homes(corpus.name))}
    assert splits <= {"train", "validation", "test", None}
    if corpus.official and corpus.name != "folder":
        assert splits == {"train", "validation", "test"}
    if not corpus.official:
        assert splits == {None}


def test_facts_are_given(corpus):
    for fact in (corpus.licence, corpus.citation, corpus.how_to_get):
        assert fact.strip()
        assert fact.isprintable()  # on one line
    assert corpus.homepage == "" or re.fullmatch(r"https://\S+", corpus.homepage)
    assert re.fullmatch(r"[a-z0-9-]+", corpus.name)
    assert corpus.seconds > 0
    assert 0 <= corpus.overlap < 1
    assert corpus.longer in ("cut", "segment")


def test_a_corpus_is_found_from_its_own_folder(corpus, homes):
    assert locate(corpus, [homes(corpus.name)]) == homes(corpus.name)


def test_a_corpus_is_found_up_to_two_levels_below(corpus, homes):
    if corpus.name in ("folder", "manifest"):
        pytest.skip("it is only ever the folder named")
    home = homes(corpus.name)
    assert locate(corpus, [home.parents[2] / "none", home.parent]) == home
    assert locate(corpus, [home.parents[1]]) == home


def test_a_corpus_that_is_not_there_says_where_it_looked_and_how_to_get_it(corpus, tmp_path):
    with pytest.raises(CorpusError, match=f"{corpus.name}: no such corpus in") as error:
        locate(corpus, [tmp_path, tmp_path / "none"])
    assert str(tmp_path / "none") in str(error.value)
    assert corpus.how_to_get in str(error.value)


def test_a_corpus_has_a_test_file_of_its_own(corpus):
    path = ROOT / "tests" / "corpora" / f"{module_of(corpus.name)}.py"
    assert path.is_file(), f"{corpus.name}: write {path}, with a function tree(home)"
    assert re.search(r"^def tree\(|^tree = ", path.read_text(), re.MULTILINE)


def test_its_recordings_become_rows(corpus, homes):
    asked = {"hours": "0.0166"} if corpus.list_mixtures else {}
    found = rows_of(corpus, homes(corpus.name), **asked)
    assert len(found.rows) > 3
    assert found.rejected == ()
    assert found.main == (corpus.labels or ("label",))[0]


def test_no_path_and_no_group_is_in_two_splits(corpus, homes):
    splits = defaultdict(set)
    for clip in listed(corpus, homes(corpus.name)):
        splits["path", clip.path].add(clip.split)
        splits["group", clip.group or clip.id].add(clip.split)
    assert {thing: found for thing, found in splits.items() if len(found) > 1} == {}


def test_a_preset_gives_a_recipe_and_what_is_asked_beside_it_wins(corpus):
    for name in corpus.presets:
        preset = corpus.preset(name)
        _, recipe = recipe_for(corpus, preset)
        for key, value in preset.items():
            found = recipe.options[key] if key in recipe.options else getattr(recipe, key)
            assert found == value
        _, other = recipe_for(corpus, {**preset, "seed": 5})
        assert other == replace(recipe, seed=5)


def test_an_unknown_preset_is_answered_with_the_known_ones(corpus):
    known = ", ".join(corpus.presets) or "none"
    with pytest.raises(InputError, match=f"preset 'mine' is not known: {corpus.name} has {known}"):
        corpus.preset("mine")
    assert corpus.preset(None) == {}


def test_the_table_is_sound(corpus):
    """Names of archives are unique over all corpora, as they are kept in one folder."""
    others = [a.name for one in CORPORA.values() if one is not corpus for a in one.archives]
    names = [archive.name for archive in corpus.archives]
    assert len({*names, *others}) == len(names) + len(others)
    assert corpus.homepage or not names
    for archive in corpus.archives:
        assert archive.url.startswith("https://")
        assert archive.name.endswith((".zip", ".tar.gz"))
        assert archive.size is None or archive.size > 0
        algorithm, _, digest = (archive.known_hash or "md5:" + "0" * 32).partition(":")
        assert len(bytes.fromhex(digest)) == {"sha256": 32, "md5": 16}[algorithm]
    assert all(archive.subset for archive in corpus.archives) or not any(
        archive.subset for archive in corpus.archives
    )


@pytest.mark.parametrize(
    ("name", "labels", "seconds", "overlap", "longer"),
    [
        ("gsc", ("word", "speaker"), 1, 0, "cut"),
        ("iemocap", ("emotion", "speaker", "session"), 4, 0.5, "segment"),
        ("ms-snsd", ("noise", "speaker"), 1, 0, "segment"),
        ("librispeech", ("word", "speaker"), 4, 0, "cut"),
        ("nsynth", ("family", "instrument", "pitch", "velocity", "source"), 6, 0, "cut"),
        ("good-sounds", ("goodness", "instrument", "player"), 6, 0, "cut"),
        ("fsdd", ("word", "speaker"), 1, 0, "cut"),
        ("asc", ("word", "speaker"), 1, 0, "cut"),
        ("folder", (), 1, 0, "segment"),
        ("manifest", (), 1, 0, "segment"),
    ],
)
def test_lengths_and_labels_are_those_of_the_contract(name, labels, seconds, overlap, longer):
    corpus = find_corpus(name)
    assert (corpus.labels, corpus.seconds, corpus.overlap, corpus.longer) == (
        labels, seconds, overlap, longer,
    )  # fmt: skip


def test_an_unknown_corpus_is_answered_with_the_known_ones():
    with pytest.raises(CorpusError, match="no corpus is called 'timit'; antigram knows gsc, "):
        find_corpus("timit")


def test_of_two_versions_the_last_by_name_is_taken(tmp_path):
    for version in ("speech_commands_v0.01", "speech_commands_v0.02"):
        corpus_trees.gsc(tmp_path / version)
    assert locate(find_corpus("gsc"), [tmp_path]).name == "speech_commands_v0.02"
