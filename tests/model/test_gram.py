import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from antigram.model.choices import AGGREGATIONS
from antigram.model.loss.codecs import encode_rows, pack, packed_size, row_shape, unpack
from antigram.model.loss.gram import ShapeError, aggregate, gram, self_product, upper_product
from antigram.model.loss.pairwise import compared
from antigram.pipeline.errors import InputError
from tests.reference.gram_loops import (
    aggregate_loops,
    cosine_loops,
    gram_loops,
    of_clip,
    packed_loops,
    released_gram_loops,
)

EPS = float(np.finfo(np.float32).eps)
SHAPES = [(1, 1, 1, 1), (3, 8, 5, 7), (2, 64, 17, 4)]
MAPS = [name for name in AGGREGATIONS if name not in ("gram", "pairwise")]


@pytest.fixture
def maps(rng, request):
    return rng.standard_normal(request.param, dtype=np.float32)


@pytest.mark.parametrize("maps", SHAPES, ids=str, indirect=True)
def test_gram_matches_loops(maps):
    want = np.stack([gram_loops(clip) for clip in maps])
    got = gram(torch.from_numpy(maps)).numpy()
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, want, rtol=0, atol=8 * EPS * want.max())


@pytest.mark.parametrize("maps", SHAPES, ids=str, indirect=True)
@pytest.mark.parametrize("aggregation", MAPS)
def test_other_aggregations_match_loops(maps, aggregation):
    maps = np.maximum(maps, 0)
    want = np.stack([aggregate_loops(clip, aggregation) for clip in maps])
    got = aggregate(torch.from_numpy(maps), aggregation).numpy()
    np.testing.assert_allclose(got, want, rtol=16 * EPS, atol=16 * EPS)


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_gradient_of_an_aggregation_matches_finite_differences(aggregation, rng):
    maps = rng.uniform(0.1, 2.0, (2, 5, 3, 4)).astype(np.float32)
    weights = [rng.standard_normal(of_clip(clip, aggregation).size) for clip in maps]
    leaf = torch.from_numpy(maps).requires_grad_()
    value = compared(leaf, aggregation)
    if aggregation not in MAPS:
        value = self_product(value.flatten(2)).flatten(1)
    (value * torch.from_numpy(np.stack(weights))).sum().backward()

    def total(at):
        return sum(
            np.dot(of_clip(clip, aggregation), w) for clip, w in zip(at, weights, strict=True)
        )

    wide, step = maps.astype(np.float64), 1e-6
    want = np.zeros_like(wide)
    for place in np.ndindex(*wide.shape):
        nudge = np.zeros_like(wide)
        nudge[place] = step
        want[place] = (total(wide + nudge) - total(wide - nudge)) / (2 * step)
    np.testing.assert_allclose(leaf.grad.numpy(), want, rtol=1e-4, atol=1e-6)


def test_gram_of_a_clip_is_a_diagonal_block_of_the_released_one_times_b_c_p_over_1000(rng):
    batch, channels, frames, freqs = shape = (3, 8, 5, 7)
    maps = rng.standard_normal(shape, dtype=np.float32)
    folded = released_gram_loops(maps)
    assert folded.shape == (batch * channels, batch * channels)
    ours = gram(torch.from_numpy(maps)).double().numpy()
    for clip in range(batch):
        block = slice(clip * channels, (clip + 1) * channels)
        want = folded[block, block] * (batch * channels * frames * freqs) * 0.001
        np.testing.assert_allclose(ours[clip], want, rtol=0, atol=8 * EPS * want.max())
    assert np.abs(folded[:channels, channels:]).max() > 0  # the released code mixes clips


def test_gram_of_a_clip_does_not_depend_on_its_batch(rng):
    maps = torch.from_numpy(rng.standard_normal((4, 6, 5, 3), dtype=np.float32))
    np.testing.assert_allclose(gram(maps)[2], gram(maps[2:3])[0], rtol=0, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_gram_is_float32_even_where_the_entries_leave_half_precision(dtype):
    got = gram(torch.full((1, 2, 10, 10), 1000.0, dtype=dtype))
    assert got.dtype == torch.float32
    np.testing.assert_allclose(got.numpy(), 1e8, rtol=1e-2)


def test_gram_is_exact_under_autocast(rng):
    maps = torch.from_numpy(rng.standard_normal((2, 4, 9, 9), dtype=np.float32))
    with torch.autocast("cpu", torch.bfloat16):
        inside, means = gram(maps), aggregate(maps, "mean")
    assert torch.equal(inside, gram(maps))
    assert torch.equal(means, aggregate(maps, "mean"))


@pytest.mark.parametrize("shape", [(2, 3, 4), (2, 0, 3, 4), (2, 3, 0, 4), (2, 3, 4, 0)], ids=str)
def test_maps_of_another_shape_are_refused(shape):
    with pytest.raises(ShapeError, match=r"batch, channel>0, frame>0, freq>0"):
        gram(torch.zeros(shape))
    with pytest.raises(ShapeError, match=r"batch, channel>0, frame>0, freq>0"):
        aggregate(torch.zeros(shape), "mean")


def test_an_unknown_aggregation_is_answered_with_the_known_ones():
    with pytest.raises(InputError, match="'median'; wanted: gram, mean, sum, max, compmul"):
        aggregate(torch.zeros(1, 1, 1, 1), "median")  # type: ignore[arg-type]


@given(st.integers(1, 12), st.integers(0, 2**32 - 1))
def test_packing_is_undone_and_keeps_the_inner_product(channels, seed):
    rng = np.random.default_rng(seed)
    half = rng.standard_normal((2, channels, channels))
    square = torch.from_numpy((half + half.transpose(0, 2, 1)).astype(np.float32))
    rows = pack(square)
    assert rows.shape == (2, packed_size(channels)) == (2, *row_shape("packed", channels, 999))
    np.testing.assert_allclose(rows[0], packed_loops(square[0].double().numpy()), rtol=4 * EPS)
    np.testing.assert_allclose(unpack(rows, channels), square, rtol=4 * EPS)
    frobenius = float((square[0].double() * square[1].double()).sum())
    scale = float(square[0].norm() * square[1].norm())
    assert float(rows[0].double() @ rows[1].double()) == pytest.approx(
        frobenius, rel=0, abs=4 * EPS * scale
    )


@pytest.mark.parametrize("maps", SHAPES, ids=str, indirect=True)
@pytest.mark.parametrize("aggregation", AGGREGATIONS)
@pytest.mark.parametrize(
    ("dtype", "allowed"), [(torch.float16, 1e-4), (torch.float32, 1e-6)], ids=["f16", "f32"]
)
def test_cosine_from_stored_rows_is_the_exact_one(maps, aggregation, dtype, allowed, rng):
    other = np.maximum(rng.standard_normal(maps.shape, dtype=np.float32) + 0.3, 0)
    maps = np.maximum(maps, 0)
    maps[0, 0, 0, 0] = 1.0
    one, two = (encode_rows(torch.from_numpy(m), aggregation, dtype) for m in (maps, other))
    assert one.data.dtype == dtype
    assert one.codec == ("map" if aggregation in MAPS else "packed")
    for clip in range(len(maps)):
        exact = cosine_loops(of_clip(maps[clip], aggregation), of_clip(other[clip], aggregation))
        inner = float(one.data[clip].double() @ two.data[clip].double())
        norms = float(one.row_norm[clip].double() * two.row_norm[clip].double())
        assert (inner / norms if norms else 0.0) == pytest.approx(exact, rel=0, abs=allowed)
        itself = float(one.data[clip].double().square().sum() / one.row_norm[clip].double() ** 2)
        if one.norm[clip] > 0:
            assert itself == pytest.approx(1, rel=0, abs=1e-6)


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_norm_is_that_of_the_undivided_matrix(aggregation, rng):
    maps = rng.uniform(0, 3, (2, 8, 5, 7)).astype(np.float32)
    rows = encode_rows(torch.from_numpy(maps), aggregation, torch.float16)
    want = [np.linalg.norm(of_clip(clip, aggregation)) for clip in maps]
    np.testing.assert_allclose(rows.norm, want, rtol=1e-5)
    stored = np.linalg.norm(rows.data.double().numpy(), axis=1)
    np.testing.assert_allclose(rows.row_norm, stored, rtol=4 * EPS)


@pytest.mark.parametrize("scale", [1e6, 1e-6])
@pytest.mark.parametrize("aggregation", ["gram", "mean", "sum", "max"])
def test_rows_do_not_depend_on_the_scale_of_the_activations(scale, aggregation, rng):
    maps = rng.uniform(0, 1, (2, 16, 12, 9))
    near, far = (
        encode_rows(torch.from_numpy((k * maps).astype(np.float32)), aggregation, torch.float16)
        for k in (1, scale)
    )
    assert torch.isfinite(far.data).all()
    np.testing.assert_allclose(far.data.float(), near.data.float(), rtol=0, atol=1e-3)
    np.testing.assert_allclose(far.row_norm, 1, rtol=0, atol=1e-3)


@pytest.mark.parametrize("aggregation", ["gram", "mean", "sum", "max"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=["f16", "f32"])
def test_a_silent_clip_is_a_row_of_zeros_and_its_neighbour_is_not(aggregation, dtype):
    maps = torch.zeros(2, 4, 3, 5)
    maps[1] = 1
    rows = encode_rows(maps, aggregation, dtype)
    assert not rows.data[0].any()
    assert rows.norm[0] == rows.row_norm[0] == 0
    assert rows.row_norm[1] == pytest.approx(1, abs=1e-3)


def test_rows_keep_what_they_are_on_another_device(rng):
    rows = encode_rows(torch.rand(2, 3, 4, 5), "gram", torch.float16)
    moved = rows.to(torch.device("cpu"))
    assert moved.codec == "packed"
    for name in ("data", "norm", "row_norm"):
        assert torch.equal(getattr(moved, name), getattr(rows, name))


@pytest.mark.parametrize("shape", [(2, 5, 7), (3, 64, 9), (2, 67, 130), (1, 130, 3)], ids=str)
def test_the_upper_triangle_of_a_product_is_that_of_the_complete_one(shape, rng):
    x = torch.from_numpy(rng.standard_normal(shape, dtype=np.float32))
    for values in (x, x.mT.contiguous().mT):
        got, want = upper_product(values), x.double() @ x.double().mT
        row, column = np.triu_indices(shape[1])
        torch.testing.assert_close(
            got[:, row, column].double(), want[:, row, column], rtol=1e-5, atol=1e-4
        )
