from __future__ import annotations

from collections import Counter, defaultdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from antigram.pipeline.features.split import FRACTIONS, assign

clips = st.lists(st.tuples(st.integers(0, 12), st.sampled_from("abcde")), min_size=1, max_size=80)
seeds = st.integers(0, 2**32)


def _parts(clips: list[tuple[int, str]]) -> tuple[list[str], list[str]]:
    return [f"g{group}" for group, _ in clips], [label for _, label in clips]


def test_clips_of_equal_classes_are_split_70_20_10_in_every_class():
    labels = [f"w{n % 10}" for n in range(1_000)]
    got = assign([str(n) for n in range(1_000)], labels, seed=0)
    table = Counter(zip(labels, got, strict=True))
    assert table == {(f"w{w}", s): (70, 20, 10)[s] for w in range(10) for s in range(3)}


@given(st.lists(st.integers(1, 120), min_size=1, max_size=12), seeds)
@settings(max_examples=60, deadline=None)
def test_single_clips_are_stratified_to_within_two_clips_a_class(sizes, seed):
    labels = [f"c{c}" for c, size in enumerate(sizes) for _ in range(size)]
    got = np.array(assign([str(n) for n in range(len(labels))], labels, seed=seed))
    for c, size in enumerate(sizes):
        if size == 1:
            continue
        counts = np.bincount(got[np.array(labels) == f"c{c}"], minlength=3)
        assert np.abs(counts - np.multiply(FRACTIONS, size)).max() <= 2, (size, counts)


def test_rounding_in_many_small_classes_does_not_add_up():
    labels = [f"c{n // 3}" for n in range(300)]  # 2.1, 0.6 and 0.3 clips a class
    got = np.bincount(assign([str(n) for n in range(300)], labels, seed=0), minlength=3)
    assert np.abs(got - (210, 60, 30)).max() <= 6


@pytest.mark.parametrize("fill_all", [False, True])
@given(clips=clips, seed=seeds)
@settings(max_examples=60, deadline=None)
def test_groups_are_never_parted_and_every_clip_has_a_split(fill_all, clips, seed):
    groups, labels = _parts(clips)
    got = assign(groups, labels, seed=seed, fill_all=fill_all)
    assert len(got) == len(clips)
    assert set(got) <= {0, 1, 2}
    of_group = defaultdict(set)
    for group, split in zip(groups, got, strict=True):
        of_group[group].add(split)
    assert {len(splits) for splits in of_group.values()} == {1}


@given(clips=clips, seed=seeds)
@settings(max_examples=60, deadline=None)
def test_a_class_seen_once_goes_to_train(clips, seed):
    groups, labels = _parts([(n, label) for n, (_, label) in enumerate(clips)])
    got = assign(groups, labels, seed=seed)
    counts = Counter(labels)
    assert all(s == 0 for s, label in zip(got, labels, strict=True) if counts[label] == 1)


@given(clips=clips, seed=seeds)
@settings(max_examples=60, deadline=None)
def test_a_split_by_label_fills_all_three_from_three_groups_on(clips, seed):
    groups, labels = _parts(clips)
    got = assign(groups, labels, seed=seed, fill_all=True)
    assert set(got) == set(range(min(3, len(set(groups)))))


def test_five_sessions_are_split_three_one_one():
    groups = [f"session{n % 5}" for n in range(100)]
    got = assign(groups, ["neu"] * 100, seed=0, fill_all=True)
    assert np.bincount(got).tolist() == [60, 20, 20]


@given(clips=clips, seed=seeds)
@settings(max_examples=60, deadline=None)
def test_the_split_does_not_depend_on_the_order_of_clips(clips, seed):
    groups, labels = _parts(clips)
    by_group = dict(zip(groups, assign(groups, labels, seed=seed), strict=True))
    backwards = assign(groups[::-1], labels[::-1], seed=seed)
    assert backwards == [by_group[group] for group in groups[::-1]]


def test_the_split_is_the_same_each_time_and_another_with_another_seed():
    groups, labels = [str(n) for n in range(100)], ["a"] * 100
    one = assign(groups, labels, seed=1)
    assert assign(groups, labels, seed=1) == one
    assert assign(groups, labels, seed=2) != one


def test_large_groups_do_not_push_train_off_its_share():
    sizes = [40, 30, 5, 5, 5, 5, 4, 3, 2, 1]
    groups = [f"g{n}" for n, size in enumerate(sizes) for _ in range(size)]
    got = np.bincount(assign(groups, ["a"] * 100, seed=0), minlength=3)
    assert got.tolist() == [70, 20, 10]


def test_groups_and_labels_of_unequal_length_are_refused():
    with pytest.raises(ValueError, match="2 groups and 1 labels"):
        assign(["a", "b"], ["x"], seed=0)


def test_names_decide_between_groups_of_equal_size_and_draw(monkeypatch):
    groups, labels = [f"g{n % 40}" for n in range(200)], [f"l{n % 3}" for n in range(200)]
    other = dict(zip(groups, assign(groups, labels, seed=0), strict=True))
    monkeypatch.setattr("antigram.pipeline.features.split.draw", lambda *_: [7])
    by_group = dict(zip(groups, assign(groups, labels, seed=0), strict=True))
    assert by_group != other
    backwards = assign(groups[::-1], labels[::-1], seed=0)
    assert dict(zip(groups[::-1], backwards, strict=True)) == by_group
