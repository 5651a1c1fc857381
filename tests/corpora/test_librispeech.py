"""LibriSpeech: three kinds of word alignments, utterances, subsets."""

from __future__ import annotations

import numpy as np
import pytest
import soundfile

from antigram.pipeline.corpora.librispeech import LIBRISPEECH
from antigram.pipeline.corpus import CorpusError
from antigram.pipeline.features.naming import recipe_for
from antigram.pipeline.features.preparation import prepare
from antigram.pipeline.features.split import SPLITS
from tests.support import corpus_trees
from tests.support.corpus_trees import RATE, sound
from tests.support.listings import labels_of, rows_of

tree = corpus_trees.librispeech

SPOKEN = [("the", 0.0, 0.5), ("cat", 0.5, 1.0), ("the", 1.2, 1.5), ("dog", 1.5, 2.0)]


def chapter(home, kind, subset="train-clean-100", speaker=19):
    folder = home / subset / str(speaker) / "198"
    folder.mkdir(parents=True, exist_ok=True)
    name = f"{speaker}-198-0000"
    soundfile.write(folder / f"{name}.flac", sound(speaker, 2 * RATE), RATE)
    if kind == "alignment":
        (folder / f"{speaker}-198.alignment.txt").write_text(
            f'{name} "THE,CAT,,THE,DOG," "0.5,1.0,1.2,1.5,2.0,2.0"'
        )
    elif kind == "selected":
        (home / "word_labels").mkdir(exist_ok=True)
        lines = [f"{name} 1 {s:.2f} {e - s:.2f} {w.upper()} 1.00\n" for w, s, e in SPOKEN]
        (home / "word_labels" / f"{subset}-selected-1000.txt").write_text("".join(lines))
    elif kind == "textgrid":
        marks = [*SPOKEN[:2], ("", 1.0, 1.2), *SPOKEN[2:]]
        tier = "".join(
            f"        intervals [{n}]:\n            xmin = {s}\n            xmax = {e}\n"
            f'            text = "{w}"\n'
            for n, (w, s, e) in enumerate(marks, 1)
        )
        (folder / f"{name}.TextGrid").write_text(
            'File type = "ooTextFile"\nObject class = "TextGrid"\n\nxmin = 0\nxmax = 2.0\n'
            "tiers? <exists>\nsize = 1\nitem []:\n    item [1]:\n"
            '        class = "IntervalTier"\n        name = "words"\n        xmin = 0\n'
            f"        xmax = 2.0\n        intervals: size = {len(marks)}\n{tier}"
        )
    return home


@pytest.mark.parametrize("kind", ["alignment", "selected", "textgrid"])
def test_each_kind_of_alignment_gives_the_same_words(kind, tmp_path):
    found = rows_of(LIBRISPEECH, chapter(tmp_path, kind))
    got = [(dict(row.labels)["word"], row.start / RATE, row.samples / RATE) for row in found.rows]
    want = [(word, start, end - start) for word, start, end in SPOKEN]
    assert [w for w, _, _ in got] == [w for w, _, _ in want]
    np.testing.assert_allclose([g[1:] for g in got], [w[1:] for w in want], atol=1 / RATE)
    assert {row.group for row in found.rows} == {"19-198-0000"}
    assert labels_of(found, "speaker") == {"19": 4}


def test_the_most_frequent_words_are_kept_and_ties_go_by_name(tmp_path):
    found = rows_of(LIBRISPEECH, chapter(tmp_path, "alignment"), words="2")
    assert labels_of(found, "word") == {"the": 2, "cat": 1}
    assert found.skipped == {"word not among the 2 most frequent": 1}


def test_a_word_said_once_does_not_fail(tmp_path):
    home = chapter(tmp_path / "ls", "alignment")
    corpus, recipe = recipe_for(LIBRISPEECH, {"words": "3", "seconds": 1.0})
    store = prepare(corpus, home, recipe, tmp_path / "x.zarr").store
    assert store.classes["word"] == ["cat", "dog", "the"]
    assert len(store) == 4


def test_utterances_are_segmented_for_the_speaker_task(tmp_path):
    home = chapter(tmp_path, None)
    found = rows_of(LIBRISPEECH, home, unit="utterance", seconds=1.0)
    assert found.label_names == ("speaker",)
    assert [row.start for row in found.rows] == [0, RATE]


def test_subsets_are_the_official_split_and_can_be_chosen(tmp_path):
    for speaker, subset in ((19, "train-clean-100"), (84, "dev-clean"), (61, "test-other")):
        chapter(tmp_path, "alignment", subset, speaker)
    found = rows_of(LIBRISPEECH, tmp_path)
    assert {row.official for row in found.rows} == set(SPLITS)
    assert labels_of(rows_of(LIBRISPEECH, tmp_path, subset="dev-clean"), "speaker") == {"84": 4}


def test_without_alignments_it_says_what_to_do(tmp_path):
    with pytest.raises(CorpusError, match="`unit=utterance`"):
        rows_of(LIBRISPEECH, chapter(tmp_path, None))


@pytest.mark.parametrize(
    "line", ["19-198-0000 THE CAT", '19-198-0000 ",A," "0.1,x,0.3"', '19-198-0000 ",A," "0.1,0.2"']
)
def test_a_strange_line_of_an_alignment_is_named(line, tmp_path):
    home = chapter(tmp_path, "alignment")
    path = home / "train-clean-100" / "19" / "198" / "19-198.alignment.txt"
    path.write_text(f"\n{line}\n")
    with pytest.raises(CorpusError, match=r"19-198\.alignment\.txt:2"):
        rows_of(LIBRISPEECH, home)


def test_with_the_papers_windows_the_last_one_ends_with_the_recording(tmp_path):
    home = chapter(tmp_path, None)
    asked = {"unit": "utterance", "seconds": 0.75, "last_window": "end"}
    found = rows_of(LIBRISPEECH, home, **asked)
    assert [row.start for row in found.rows] == [0, 12_000, 20_000]
    assert found.skipped == {}
