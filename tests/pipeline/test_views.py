"""Draw the parameters of views, and apply them to normalised magnitudes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from antigram.pipeline.audio.augmentation import COLUMNS, Levels, Views, apply_views
from antigram.pipeline.errors import InputError

SHAPE = (126, 129)
IDS = [f"clip{n}" for n in range(200)]
VIEWS = Views.for_shape(SHAPE, count=3, seed=0)


def by_hand(magnitudes, numbers):
    """Compute a view of magnitudes (frame, freq) in float64, frame by frame and bin by bin."""
    shift, gain, t_first, t_count, f_first, f_count = numbers
    out = np.zeros_like(magnitudes)
    for frame in range(len(magnitudes)):
        from_ = frame - int(shift)
        if not 0 <= from_ < len(magnitudes) or t_first <= frame < t_first + t_count:
            continue
        for bin_ in range(magnitudes.shape[1]):
            if not f_first <= bin_ < f_first + f_count:
                out[frame, bin_] = magnitudes[from_, bin_] * 10 ** (gain / 20)
    return out


class TestDraw:
    def test_the_numbers_stay_within_the_clip_and_reach_the_limits(self):
        drawn = np.concatenate([VIEWS.params(IDS, view, SHAPE) for view in range(20)])
        shift, gain, t_first, t_count, f_first, f_count = drawn.T
        assert drawn.shape == (20 * len(IDS), len(COLUMNS))
        assert drawn.dtype == np.float32
        for whole in (shift, t_first, t_count, f_first, f_count):
            np.testing.assert_array_equal(whole, np.round(whole))
        assert (shift.min(), shift.max()) == (-12, 12)
        assert -6 <= gain.min() < -5.9 < 5.9 < gain.max() <= 6
        assert (t_count.min(), t_count.max()) == (0, 25)
        assert (f_count.min(), f_count.max()) == (0, 25)
        assert t_first.min() == f_first.min() == 0
        assert (t_first + t_count).max() == 126
        assert (f_first + f_count).max() == 129
        assert abs(shift.mean()) < 0.5
        assert abs(gain.mean()) < 0.25

    def test_they_depend_on_seed_clip_and_view_and_on_nothing_else(self):
        here = VIEWS.params(IDS, 1, SHAPE)
        backwards = VIEWS.params(IDS[::-1], 1, SHAPE)[::-1]
        np.testing.assert_array_equal(here, backwards)
        more = Views.for_shape(SHAPE, count=9, seed=0).params(IDS, 1, SHAPE)
        np.testing.assert_array_equal(here, more)
        others = [
            VIEWS.params(IDS, 2, SHAPE),
            Views.for_shape(SHAPE, count=3, seed=1).params(IDS, 1, SHAPE),
            VIEWS.params(["another"] * len(IDS), 1, SHAPE),
        ]
        for other in others:
            assert (here != other).any(axis=1).mean() > 0.99

    def test_epochs_take_the_views_by_turns_or_ever_new_ones(self):
        assert [VIEWS.of_epoch(epoch) for epoch in (1, 2, 3, 4, 7)] == [0, 1, 2, 0, 0]
        endless = Views.for_shape(SHAPE, count=0, seed=0)
        assert [endless.of_epoch(epoch) for epoch in (1, 2, 50)] == [0, 1, 49]

    @pytest.mark.parametrize("change", [{"count": -1}, {"gain_db": -1.0}, {"gain_db": np.nan}])
    def test_limits_that_mean_nothing_are_refused(self, change):
        with pytest.raises(InputError, match=f"views: {next(iter(change))}"):
            Views(**{**VIEWS.to_json(), **change})

    def test_stored_ones_are_read_back_and_others_refused(self):
        assert Views.from_json(VIEWS.to_json()) == VIEWS
        with pytest.raises(TypeError):
            Views.from_json({**VIEWS.to_json(), "colour": 1})


@settings(max_examples=60, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 12), st.integers(1, 9)),
    seed=st.integers(0, 2**31),
    view=st.integers(0, 1000),
    mean=st.floats(0.01, 10),
    std=st.floats(0.1, 10),
)
def test_a_view_is_that_of_the_magnitudes_normalised(shape, seed, view, mean, std):
    views = Views(count=1, seed=seed, time_mask=6, freq_mask=6, shift=5, gain_db=6.0)
    numbers = views.params(["one", "two"], view, shape)
    magnitudes = np.random.default_rng(seed).random((2, *shape)) * 3
    x = ((magnitudes - mean) / std).astype(np.float32)
    apply_views(x, numbers, Levels(-mean / std))
    for found, clip, row in zip(x, magnitudes, numbers.astype(float), strict=True):
        want = (by_hand(clip, row) - mean) / std
        np.testing.assert_allclose(found, want, rtol=0, atol=1e-5 * (1 + 10 / std + mean / std))


def test_a_view_of_all_zeros_is_the_clip_itself_to_the_bit():
    x = np.random.default_rng(0).standard_normal((3, *SHAPE)).astype(np.float32)
    same = x.copy()
    apply_views(same, np.zeros((3, len(COLUMNS)), np.float32), Levels(-1.5))
    np.testing.assert_array_equal(same, x)


def test_silence_stays_silence():
    x = np.full((1, *SHAPE), -0.7, np.float32)
    apply_views(x, np.array([[5, 6, 10, 20, 30, 20]], np.float32), Levels(-0.7))
    np.testing.assert_allclose(x, -0.7, rtol=1e-6)
