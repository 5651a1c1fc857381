"""Baselines of an accuracy."""

import math

import numpy as np
import pytest

from antigram.model.training.chance import above_chance, chance, majority


def test_chance_is_the_share_of_one_class():
    assert chance(["a", "b", "c", "d"]) == 0.25
    with pytest.raises(ValueError, match="no classes"):
        chance([])


def test_majority_answers_the_most_frequent_training_class_on_the_split():
    train = np.array([2, 2, 2, 0, 0, 1, -1, -1, -1, -1], np.int32)
    test = np.array([2, 0, 0, 0, -1, 1], np.int32)  # class 0 is the most frequent here
    assert majority(train, test) == 1 / 5
    assert majority(np.array([1, 0]), np.array([0, 0, 1])) == 2 / 3  # a tie: the first class
    assert majority(np.array([-1]), test) is None
    assert majority(train, np.array([-1], np.int32)) is None
    assert majority(train, np.array([3, 3])) == 0.0


@pytest.mark.parametrize(("correct", "n", "p0"), [(0, 5, 0.5), (3, 5, 0.5), (9, 20, 0.3)])
def test_above_chance_is_the_upper_tail_of_the_binomial(correct, n, p0):
    tail = sum(math.comb(n, k) * p0**k * (1 - p0) ** (n - k) for k in range(correct, n + 1))
    assert above_chance(correct, n, p0) == pytest.approx(tail, rel=1e-12)


def test_without_answers_nothing_is_above_chance():
    assert above_chance(0, 0, 0.5) == 1
