"""Norms of wide layers are exact, and losses without a gradient cause a warning."""

import numpy as np
import pytest
import torch

from antigram.model.loss.at_loss import at_loss, at_losses
from antigram.model.loss.codecs import Stack, encode_rows
from antigram.model.loss.student_maps import StudentMaps

EPS = np.finfo(np.float32).eps


@pytest.fixture
def maps(rng):
    """Maps with 512 channels and 56 positions, as at layer 13 of the paper's network."""
    return torch.from_numpy(rng.gamma(0.05, 1.0, (3, 512, 8, 7)).astype(np.float32))


def test_the_norm_of_a_triangle_of_512_channels_is_exact(maps):
    own = StudentMaps(maps)
    whole = (own.gram.double() ** 2).sum((1, 2)).sqrt()
    assert own.packed.shape == (3, 512 * 513 // 2)  # then the norm is that of the packed row
    np.testing.assert_allclose(own.norm.double(), whole, rtol=2 * EPS)  # seen: 0.3 eps


@pytest.mark.parametrize("codec", ["packed", "factor"])
def test_a_wide_net_compared_with_itself_gives_1(codec, maps):
    rows = encode_rows(maps, "gram", torch.float32, codec)
    got = at_loss(maps, rows, "gram")
    np.testing.assert_allclose(got, np.ones(3), rtol=0, atol=4 * EPS)


def test_grams_whose_squares_leave_float32_are_compared(rng):
    maps = torch.from_numpy(rng.uniform(0, 1, (2, 6, 3, 5)).astype(np.float32))
    rows = encode_rows(maps.flip(1), "gram", torch.float32, "packed")
    want = at_losses(StudentMaps(maps), Stack.of([rows]))
    got = at_losses(StudentMaps(maps * 2.0**33), Stack.of([rows]))
    np.testing.assert_allclose(got, want, rtol=4 * EPS)
    assert want.min() > 0.1
