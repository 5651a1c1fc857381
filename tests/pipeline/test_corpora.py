"""What every adapter owes, on a tree in its corpus's own layout."""

from __future__ import annotations

import re

import pytest

from antigram.pipeline.audio.noise import noise_files
from antigram.pipeline.corpora import CORPORA, find_corpus
from antigram.pipeline.corpus import Clip, CorpusError, MixtureRequest, locate
from tests.pipeline.trees_more import ALL_TREES

CORPUS = pytest.mark.parametrize("corpus", CORPORA.values(), ids=lambda corpus: corpus.name)


@pytest.fixture(scope="module")
def homes(tmp_path_factory):
    """Tree of each corpus, made when it is first asked for."""
    made = {}

    def home(name: str):
        assert name in ALL_TREES, f"{name}: add its tree to tests/pipeline/trees_more.py"
        if name not in made:
            made[name] = ALL_TREES[name](tmp_path_factory.mktemp(name) / "elsewhere" / "home")
        return made[name]

    return home


def listed(corpus, home) -> list[Clip]:
    """Clips with the corpus's own options; of a corpus that is mixed, a minute of mixtures."""
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
    """What the paths of clips are relative to."""
    return home / "clean_train" if corpus.list_mixtures is not None else home


@CORPUS
def test_ids_are_unique_and_the_same_in_two_runs(corpus, homes):
    home = homes(corpus.name)
    clips = listed(corpus, home)
    assert len(clips) > 3
    assert len({clip.id for clip in clips}) == len(clips)
    assert listed(corpus, home) == clips


@CORPUS
def test_paths_are_relative_and_there(corpus, homes):
    home = homes(corpus.name)
    for clip in listed(corpus, home):
        assert not clip.path.startswith("/")
        assert ".." not in clip.path.split("/")
        assert (root(corpus, home) / clip.path).is_file()
        assert not clip.path.rpartition("/")[2].startswith(".")


@CORPUS
def test_ids_do_not_hold_the_place_where_the_corpus_lies(corpus, homes):
    home = homes(corpus.name)
    assert not any(str(home.parent.name) in clip.id for clip in listed(corpus, home))


@CORPUS
def test_labels_are_those_announced_and_never_empty(corpus, homes):
    for clip in listed(corpus, homes(corpus.name)):
        assert clip.labels
        assert all(clip.labels.values())
        if corpus.labels:
            assert set(clip.labels) <= set(corpus.labels)
            assert corpus.labels[0] in clip.labels


@CORPUS
def test_an_official_split_is_whole_where_it_is_promised(corpus, homes):
    splits = {clip.split for clip in listed(corpus, homes(corpus.name))}
    assert splits <= {"train", "validation", "test", None}
    if corpus.official and corpus.name != "folder":
        assert splits == {"train", "validation", "test"}
    if not corpus.official:
        assert splits == {None}


@CORPUS
def test_facts_are_given(corpus):
    assert corpus.licence
    assert corpus.how_to_get
    assert re.fullmatch(r"[a-z0-9-]+", corpus.name)
    assert corpus.seconds > 0
    assert 0 <= corpus.overlap < 1
    assert corpus.longer in ("cut", "segment")


@CORPUS
def test_a_corpus_is_found_from_its_own_folder(corpus, homes):
    assert locate(corpus, [homes(corpus.name)]) == homes(corpus.name)


@CORPUS
def test_a_corpus_is_found_up_to_two_levels_below(corpus, homes):
    if corpus.name == "folder":
        pytest.skip("folder is only ever the folder named")
    home = homes(corpus.name)
    assert locate(corpus, [home.parents[2] / "none", home.parent]) == home
    assert locate(corpus, [home.parents[1]]) == home


@CORPUS
def test_a_corpus_that_is_not_there_says_where_it_looked_and_how_to_get_it(corpus, tmp_path):
    with pytest.raises(CorpusError, match=f"{corpus.name}: no such corpus in") as error:
        locate(corpus, [tmp_path, tmp_path / "none"])
    assert str(tmp_path / "none") in str(error.value)
    assert corpus.how_to_get in str(error.value)


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
        ALL_TREES["gsc"](tmp_path / version)
    assert locate(find_corpus("gsc"), [tmp_path]).name == "speech_commands_v0.02"
