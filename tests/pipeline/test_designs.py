"""Designs on simulated tables: what each side of a fold has, and what none may share."""

from collections import Counter, defaultdict

import numpy as np
import pytest
from hypothesis import given, reject, settings
from hypothesis import strategies as st

from antigram.pipeline.errors import InputError
from antigram.pipeline.features.designs import Design, Segments, divide_for_teacher

SEEDS = st.integers(0, 2**32)


def crossed(speakers, words, takes, *, pieces=1):
    """Make segments of every speaker and word, with given numbers of takes and segments."""
    rows = [
        (f"s{s:02d}", f"w{w}", f"s{s}w{w}t{t}")
        for s in range(speakers)
        for w in range(words)
        for t in range(takes)
        for _ in range(pieces)
    ]
    return table(rows)


def table(rows):
    """Segments of (speaker, word, recording)."""
    speaker, word, recording = map(list, zip(*rows, strict=True))
    return Segments({"word": word, "speaker": speaker}, recording, "word")


def values_in(segments, label, split, number):
    own = segments.recordings if label == "recording" else segments.labels[label]
    return {own[i] for i in np.flatnonzero(split == number)}


def check_sides(segments, split, label):
    """No class of a label is on two of train, validation and test."""
    sides = [values_in(segments, label, split, number) for number in range(3)]
    assert sum(map(len, sides)) == len(set().union(*sides))


@st.composite
def tables(draw):
    """Speakers with recordings of one to three segments; some speakers are not known."""
    speakers = draw(st.integers(2, 7))
    rows = []
    for recording in range(draw(st.integers(speakers, 30))):
        speaker = recording if recording < speakers else draw(st.integers(-1, speakers - 1))
        row = (f"s{speaker}" if speaker >= 0 else "", draw(st.sampled_from("abc")), f"r{recording}")
        rows += [row] * draw(st.integers(1, 3))
    return speakers, table(rows)


@given(tables(), SEEDS, st.data())
@settings(max_examples=60, deadline=None)
def test_folds_test_each_group_once_and_share_no_group_and_no_recording(simulated, seed, data):
    speakers, segments = simulated
    parts = data.draw(st.integers(2, speakers))
    try:
        folds = Design.parse(f"kfold:speaker:{parts}").divide(segments, seed)
    except InputError:  # two groups, and one recording of each class beside them
        reject()
    assert len(folds) == parts
    tested = Counter(s for fold in folds for s in values_in(segments, "speaker", fold, 2))
    assert set(tested.values()) == {1}
    assert len(tested) == speakers
    for fold in folds:
        unknown = np.array(segments.labels["speaker"]) == ""
        np.testing.assert_array_equal(fold == -1, unknown)
        check_sides(segments, fold, "recording")
        test, rest = (values_in(segments, "speaker", fold, n) for n in (2, 0))
        assert not test & (rest | values_in(segments, "speaker", fold, 1))
        if speakers - len(test) >= 3:
            check_sides(segments, fold, "speaker")


def test_parts_are_of_equal_size_and_train_and_validation_have_every_word():
    segments = crossed(30, 10, 2)
    folds = Design.parse("kfold:speaker:5").divide(segments, 0)
    for fold in folds:
        assert np.bincount(fold).tolist() == [19 * 20, 5 * 20, 6 * 20]
        for number in range(3):
            assert len(values_in(segments, "word", fold, number)) == 10
    # Folds differ in whom they validate on, not only in whom they test.
    assert len({frozenset(values_in(segments, "speaker", fold, 1)) for fold in folds}) == 5


def test_as_many_folds_as_groups_leave_one_out():
    segments = crossed(5, 3, 4)
    folds = Design.parse("kfold:speaker:5").divide(segments, 3)
    assert [len(values_in(segments, "speaker", fold, 2)) for fold in folds] == [1] * 5


def test_few_groups_are_trained_on_and_the_other_splits_stay():
    segments = crossed(15, 4, 3)
    every = Design.parse("kfold:speaker:5").divide(segments, 2)
    few = Design.parse("kfold:speaker:5:4").divide(segments, 2)
    for all_of_them, fold in zip(every, few, strict=True):
        trained = values_in(segments, "speaker", fold, 0)
        assert len(trained) == 4
        assert trained < values_in(segments, "speaker", all_of_them, 0)
        for split in (1, 2):
            np.testing.assert_array_equal(fold == split, all_of_them == split)
    assert len({frozenset(values_in(segments, "speaker", fold, 0)) for fold in few}) == 5


def test_two_groups_that_are_left_are_divided_by_recording():
    segments = crossed(3, 2, 9, pieces=2)
    for fold in Design.parse("kfold:speaker:3").divide(segments, 0):
        check_sides(segments, fold, "recording")
        assert len(values_in(segments, "speaker", fold, 1)) == 2
        assert np.bincount(fold)[:2].tolist() == [56, 16]


def test_groups_that_share_a_recording_are_one():
    rows = [(f"s{n // 4}", "a", f"r{n}") for n in range(20)] + [("s1", "a", "r0")]
    segments = table(rows)
    with pytest.raises(InputError, match="4 groups for 5 folds"):
        Design.parse("kfold:speaker:5").divide(segments, 0)
    for fold in Design.parse("kfold:speaker:4").divide(segments, 0):
        check_sides(segments, fold, "recording")


@given(st.integers(2, 9), st.integers(2, 9), SEEDS)
@settings(max_examples=60, deadline=None)
def test_confounded_halves_are_swapped_and_balanced(speakers, words, seed):
    segments = crossed(speakers, words, 5)
    first, second = Design.parse("confounded:word:speaker").divide(segments, seed)
    cells = np.array(
        [
            f"{s} {w}"
            for s, w in zip(segments.labels["speaker"], segments.labels["word"], strict=True)
        ]
    )
    trained = [set(cells[(fold == 0) | (fold == 1)]) for fold in (first, second)]
    tested = [set(cells[fold == 2]) for fold in (first, second)]
    assert trained == tested[::-1]
    assert not trained[0] & tested[0]
    assert not (first == -1).any()
    for fold in (first, second):
        check_sides(segments, fold, "recording")
    of_speaker = Counter(cell.split()[0] for cell in trained[0])
    assert set(of_speaker.values()) <= {words // 2, -(-words // 2)}
    of_word = Counter(cell.split()[1] for cell in trained[0])
    least = speakers / 2 - 1
    assert all(least <= of_word[f"w{w}"] <= speakers - least for w in range(words))


def test_halves_are_exact_where_they_can_be_and_each_class_keeps_its_share():
    segments = crossed(30, 10, 7)
    for fold in Design.parse("confounded:word:speaker").divide(segments, 1):
        assert (np.bincount(fold) / len(fold)).round(2).tolist() == [0.39, 0.11, 0.5]
        seen = defaultdict(set)
        for i in np.flatnonzero(fold < 2):
            seen[segments.labels["word"][i]].add(segments.labels["speaker"][i])
        assert {len(of) for of in seen.values()} == {15}


def test_a_teacher_gets_training_recordings_alone_in_another_division():
    segments = crossed(30, 10, 7, pieces=2)
    fold = Design.parse("kfold:speaker:5").divide(segments, 0)[2]
    split = divide_for_teacher(segments, np.flatnonzero(fold == 0), "speaker", 0)
    np.testing.assert_array_equal(split >= 0, fold == 0)
    check_sides(segments, split, "recording")
    train, validation = ((split == n).sum() for n in range(2))
    assert train == pytest.approx(4 * validation, rel=0.1)
    both = [values_in(segments, "speaker", split, n) for n in range(2)]
    assert both[0] == both[1]  # stratified by what it learns


def test_a_teacher_uses_no_segment_whose_label_is_not_known():
    segments = table([("s0" if n % 2 else "", "a", f"r{n}") for n in range(40)])
    split = divide_for_teacher(segments, np.arange(30), "speaker", 0)
    np.testing.assert_array_equal(split >= 0, (np.arange(40) < 30) & (np.arange(40) % 2 == 1))


@pytest.mark.parametrize(
    "design", ["kfold:speaker:4", "kfold:speaker:3:2", "confounded:word:speaker"]
)
def test_a_division_is_that_of_its_seed(design):
    segments, parsed = crossed(9, 6, 3), Design.parse(design)
    one, again, other = (np.stack(parsed.divide(segments, seed)) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one, again)
    assert (one != other).any()
    assert str(parsed) == design


@pytest.mark.parametrize(
    ("design", "match"),
    [
        ("kfold:speaker:1", "K of 2 or more"),
        ("kfold:speaker:²", "K of 2 or more"),
        ("kfold:5", "wanted: kfold:LABEL:K, kfold:LABEL:K:N or confounded"),
        ("confounded:word:", "wanted: kfold:LABEL:K, kfold:LABEL:K:N or confounded"),
        ("confounded:word:word", "two labels that differ"),
        ("kfold:pitch:2", "no label 'pitch'; there are word, speaker"),
        ("confounded:word:pitch", "no label 'pitch'"),
        ("kfold:speaker:7", "6 groups for 7 folds"),
        ("kfold:speaker:3:0", "N of 1 or more"),
        ("kfold:speaker:1:2", "K of 2 or more"),
        ("kfold:speaker:3:4", "fold 0 has 3 groups of speaker to train on; wanted: 4"),
    ],
)
def test_a_design_that_cannot_be_made_says_why(design, match):
    with pytest.raises(InputError, match=match):
        Design.parse(design).divide(crossed(6, 2, 3), 0)


def test_a_recording_of_several_words_cannot_be_halved():
    rows = [(f"s{n % 2}", f"w{n % 3}", f"r{n // 4}") for n in range(40)]
    with pytest.raises(InputError, match=r"recording r0 has segments of several classes of word"):
        Design.parse("confounded:word:speaker").divide(table(rows), 0)


def test_one_class_cannot_be_halved_and_one_recording_cannot_be_divided():
    with pytest.raises(InputError, match="at least two classes of each label"):
        Design.parse("confounded:word:speaker").divide(crossed(4, 1, 3), 0)
    with pytest.raises(InputError, match="fold 0 has no segment for validation"):
        Design.parse("kfold:speaker:2").divide(crossed(2, 1, 1), 0)
    with pytest.raises(InputError, match="too few to be divided"):
        divide_for_teacher(crossed(2, 1, 1), np.arange(1), "speaker", 0)
