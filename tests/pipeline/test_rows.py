from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from antigram.pipeline.audio.windows import window_starts
from antigram.pipeline.corpora.folder import FOLDER
from antigram.pipeline.corpora.gsc import GSC
from antigram.pipeline.corpus import Clip, Corpus, CorpusError, Skipped
from antigram.pipeline.errors import InputError
from antigram.pipeline.features.listing import list_rows, split_rows
from antigram.pipeline.features.recipe import Recipe
from antigram.pipeline.features.rows import SHORT_PIECE
from tests.reference.cover import cover
from tests.support.corpus_trees import RATE, sound, wav
from tests.support.stores import gsc_recipe

FOLDER_RECIPE = Recipe(corpus="folder", longer="segment")


def corpus_of(clips: list[Clip | Skipped], longer="segment") -> Corpus:
    return Corpus(
        name="made",
        labels=("word", "speaker"),
        seconds=1.0,
        longer=longer,
        licence="CC0-1.0",
        citation="",
        how_to_get="",
        is_home=lambda _: True,
        list_clips=lambda _home, _options: clips,
    )


def clip(id: str, path: str = "a.wav", **changes) -> Clip:
    fields = {"labels": {"word": "yes"}, **changes}
    return Clip(id=id, path=path, **fields)


@given(count=st.integers(1, 400), window=st.integers(1, 60), share=st.floats(0.05, 1))
def test_window_starts_equal_those_found_by_marking_samples(count, window, share):
    hop = max(1, round(window * share))
    assert window_starts(count, window, hop) == cover(count, window, hop)


@pytest.mark.parametrize(
    ("count", "starts", "short"),
    [
        (1, [0], False),  # the only one is kept, however short
        (49, [0], False),
        (100, [0], False),
        (101, [0], True),
        (149, [0], True),
        (150, [0, 100], False),  # exactly half
        (200, [0, 100], False),
        (249, [0, 100], True),
        (250, [0, 100, 200], False),
    ],
)
def test_a_last_piece_is_kept_from_half_a_window_on(count, starts, short):
    assert window_starts(count, 100, 100) == (starts, short)


def test_half_overlapping_windows_stop_once_the_recording_is_covered():
    assert window_starts(400, 200, 100) == ([0, 100, 200], False)
    assert window_starts(401, 200, 100) == ([0, 100, 200, 300], False)


@given(count=st.integers(1, 400), window=st.integers(1, 60), hop=st.integers(1, 60))
def test_a_last_window_that_ends_with_the_recording_needs_no_padding(count, window, hop):
    hop = min(hop, window)
    starts, short = window_starts(count, window, hop, "end")
    assert not short
    assert starts[:-1] == [n * hop for n in range(len(starts) - 1)]
    assert starts[-1] == max(0, count - window) or count <= window
    assert len(starts) == len(cover(count, window, hop)[0]) + cover(count, window, hop)[1]


def test_recordings_are_segmented_and_short_pieces_counted(tmp_path):
    wav(tmp_path / "owl" / "a.wav", sound(1, round(2.6 * RATE)))
    wav(tmp_path / "owl" / "b.wav", sound(2, round(1.3 * RATE)))
    wav(tmp_path / "owl" / "c.wav", sound(3, 800))
    listing = list_rows(FOLDER, tmp_path, FOLDER_RECIPE)
    assert [(r.clip_id, r.start, r.samples) for r in listing.rows] == [
        ("owl/a.wav#00000", 0, 16_000),
        ("owl/a.wav#00001", 16_000, 16_000),
        ("owl/a.wav#00002", 32_000, 9_600),
        ("owl/b.wav#00000", 0, 16_000),
        ("owl/c.wav#00000", 0, 800),
    ]
    assert listing.skipped == {SHORT_PIECE: 1}
    assert [r.source(RATE) for r in listing.rows[:3]] == [f"owl/a.wav#{s}" for s in (0, 1, 2)]
    assert {r.group for r in listing.rows[:3]} == {"owl/a.wav"}


def test_the_start_of_a_recording_is_kept_when_it_is_cut(gsc_home):
    rows = {r.clip_id: r for r in list_rows(GSC, gsc_home, gsc_recipe()).rows}
    counts = [rows[f"two/{n}"].samples for n in ("0000ab00_nohash_0", "0000ab01_nohash_0",
                                               "0000ab02_nohash_0")]  # fmt: skip
    assert counts == [16_000, 11_147, 16_000]
    assert {r.start for r in rows.values()} == {0}
    assert list(rows) == sorted(rows)


def test_parts_of_one_recording_keep_to_their_ends(tmp_path):
    wav(tmp_path / "a.wav", sound(0, 5 * RATE))
    parts: list[Clip | Skipped] = [
        clip("one", start_s=0.5, end_s=2.0),
        clip("two", start_s=4.25),
        clip("past", start_s=4.5, end_s=9.0),
        clip("gone", start_s=5.0),
    ]
    listing = list_rows(corpus_of(parts, "cut"), tmp_path, Recipe(corpus="made"))
    got = {r.clip_id: (r.start, r.samples) for r in listing.rows}
    assert got == {"one": (8_000, 16_000), "two": (68_000, 12_000), "past": (72_000, 8_000)}
    assert [(r.source, r.reason) for r in listing.rejected] == [
        ("a.wav", "the part from 5 s begins after its end (80000 samples)")
    ]


def test_a_source_names_its_start_to_the_sample(tmp_path):
    wav(tmp_path / "a.wav", sound(0, 2 * RATE))
    listing = list_rows(corpus_of([clip("x", start_s=0.0001)], "cut"), tmp_path,
                        Recipe(corpus="made"))  # fmt: skip
    assert listing.rows[0].source(RATE) == "a.wav#0.000125"


def test_clips_without_the_main_label_are_counted_as_skipped(tmp_path):
    wav(tmp_path / "a.wav", sound(0))
    clips: list[Clip | Skipped] = [
        clip("x"), clip("y", labels={"speaker": "s"}), clip("z", labels={"word": ""}),
             Skipped("hidden", 3), Skipped("hidden")]  # fmt: skip
    listing = list_rows(corpus_of(clips), tmp_path, Recipe(corpus="made"))
    assert listing.skipped == {"hidden": 4, "no word label": 2}
    assert len(listing.rows) == 1


def test_the_same_id_twice_is_refused(tmp_path):
    wav(tmp_path / "a.wav", sound(0))
    with pytest.raises(CorpusError, match="both have the id x"):
        list_rows(corpus_of([clip("x"), clip("y"), clip("x")]), tmp_path, Recipe(corpus="made"))


def test_a_name_that_is_no_utf8_is_refused(tmp_path):
    with pytest.raises(CorpusError, match="not UTF-8"):
        list_rows(corpus_of([clip("x", "\udcff.wav")]), tmp_path, Recipe(corpus="made"))


def test_a_corpus_that_gives_nothing_says_what_it_skipped(tmp_path):
    with pytest.raises(CorpusError, match=r"no recording in .*3 x hidden"):
        list_rows(corpus_of([Skipped("hidden", 3)]), tmp_path, Recipe(corpus="made"))


def test_a_limit_keeps_so_many_of_each_class_drawn_from_the_seed(gsc_home):
    def ids(**changes) -> list[str]:
        return [r.clip_id for r in list_rows(GSC, gsc_home, gsc_recipe(**changes)).rows]

    kept = ids(limit_per_class=3)
    assert [sum(i.startswith(word) for i in kept) for word in ("zero", "one", "two")] == [3] * 3
    assert ids(limit_per_class=3) == kept
    assert any(ids(limit_per_class=3, seed=s) != kept for s in range(1, 4))
    assert set(kept) <= set(ids())


def test_the_identity_of_a_listing_sees_a_file_that_grew(tmp_path):
    path = wav(tmp_path / "cat" / "a.wav", sound(0))
    before = list_rows(FOLDER, tmp_path, FOLDER_RECIPE).identity
    assert list_rows(FOLDER, tmp_path, FOLDER_RECIPE).identity == before
    wav(path, sound(0, RATE + 1))
    assert list_rows(FOLDER, tmp_path, FOLDER_RECIPE).identity != before


def _split(corpus, rows, split: str) -> np.ndarray:
    recipe = Recipe(corpus=corpus.name, longer=corpus.longer, split=split)
    return np.array(split_rows(corpus, rows, recipe, corpus.labels[0]))


def test_an_official_split_is_taken_as_it_is(gsc_home):
    rows = list_rows(GSC, gsc_home, gsc_recipe()).rows
    got = _split(GSC, rows, "official")
    named = {r.clip_id: int(s) for r, s in zip(rows, got, strict=True) if s}
    assert named == {
        "zero/0000ab03_nohash_0": 2, "two/0000ab03_nohash_1": 2, "one/0000ab02_nohash_0": 1,
    }  # fmt: skip


def test_a_missing_official_split_is_refused(gsc_home):
    rows = list_rows(corpus_of([clip("x", "zero/0000ab00_nohash_0.wav")]), gsc_home,
                     Recipe(corpus="made")).rows  # fmt: skip
    with pytest.raises(InputError, match="not known for 1 of 1 segments"):
        _split(corpus_of([]), rows, "official")


def test_a_split_by_speaker_parts_no_speaker_and_fills_all_three(gsc_home):
    rows = list_rows(GSC, gsc_home, gsc_recipe()).rows
    got = _split(GSC, rows, "by:speaker")
    speakers = np.array([dict(r.labels)["speaker"] for r in rows])
    assert set(got) == {0, 1, 2}
    assert all(len(set(got[speakers == s])) == 1 for s in set(speakers))


def test_a_split_by_an_unknown_label_names_those_there_are(gsc_home):
    rows = list_rows(GSC, gsc_home, gsc_recipe()).rows
    with pytest.raises(InputError, match="by:singer`: no such label; gsc has speaker, word"):
        _split(GSC, rows, "by:singer")
