"""Every codec gives the loss of the formula in float64, for all shapes."""

import numpy as np
import pytest
import torch

from antigram.model.choices import Aggregation
from antigram.model.loss.at_loss import at_loss
from antigram.model.loss.codecs import Rows, encode_rows, exact_codec, packed_size, row_shape
from antigram.model.loss.gram import self_product
from antigram.model.loss.student_maps import StudentMaps
from antigram.pipeline.errors import InputError
from tests.reference.gram_loops import cosine_loops, gram_loops, similarity_loops

CODECS = ("packed", "factor", "lowrank")
DTYPES = [torch.float32, torch.float16]
SHAPES = {
    "fewer channels": (3, 8, 5, 7),
    "as many": (3, 12, 3, 4),
    "more channels": (3, 40, 3, 5),
    "one position": (2, 16, 1, 1),
    "one channel": (2, 1, 4, 5),
    "one of both": (2, 1, 1, 1),
}
every_codec = pytest.mark.parametrize("codec", CODECS)
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=["f32", "f16"])
every_shape = pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)


@pytest.fixture
def pair(rng, shape):
    """Return maps of student and teacher, as after a ReLU; no clip is silent."""
    maps = np.maximum(rng.standard_normal((2, *shape)) + 0.5, 0).astype(np.float32)
    maps[:, :, 0, 0, 0] = 1
    return maps


def rows_of(teacher, codec, dtype=torch.float32, rank=None):
    return encode_rows(torch.as_tensor(teacher), "gram", dtype, codec, rank)


def cosines(student, teacher):
    both = zip(student, teacher, strict=True)
    return np.array([cosine_loops(gram_loops(a).ravel(), gram_loops(b).ravel()) for a, b in both])


def gradient_of_the_formula(student, teacher):
    """Return d cos^2 / d maps by autograd in float64, from full Grams."""
    own = torch.from_numpy(student).double().requires_grad_()
    grams = [
        torch.einsum("bip,bjp->bij", m.flatten(2), m.flatten(2)).flatten(1)
        for m in (own, torch.from_numpy(teacher).double())
    ]
    cosine = (grams[0] * grams[1]).sum(1) / (grams[0].norm(dim=1) * grams[1].norm(dim=1))
    cosine.square().sum().backward()
    return own.grad


def best_of_rank(maps, rank):
    """Return the nearest matrix of a rank to one clip's G / ||G||, and its energy, in float64."""
    matrix = gram_loops(maps)
    values, vectors = np.linalg.eigh(matrix / np.linalg.norm(matrix))
    values, vectors = values[::-1][:rank], vectors[:, ::-1][:, :rank]
    return (vectors * values) @ vectors.T, float((values**2).sum())


def allowed(codec, dtype):
    """Return the error of a cosine that rounding of the stored row may cause.

    Seen in 60 draws of each shape: 2.3e-7 in float32; in float16 4.8e-5 packed, 1.0e-4 factor (16
    channels at one position, 5e-5 elsewhere) and 1.1e-4 lowrank, whose first vector has most of
    the norm, so that rounding errors do not average out.
    """
    if dtype == torch.float32:
        return 1e-5
    return 2e-4 if codec == "lowrank" else 1e-4


@every_shape
@every_dtype
@every_codec
def test_the_cosine_is_that_of_the_maps(codec, dtype, pair):
    student, teacher = pair
    loss = at_loss(torch.from_numpy(student), rows_of(teacher, codec, dtype), "gram")
    assert loss.dtype == torch.float32
    got = loss.double().sqrt().numpy()
    np.testing.assert_allclose(got, cosines(student, teacher), rtol=0, atol=allowed(codec, dtype))


@every_shape
@every_dtype
@every_codec
def test_the_gradient_points_where_that_of_the_formula_does(codec, dtype, pair):
    student, teacher = pair
    leaf = torch.from_numpy(student).requires_grad_()
    at_loss(leaf, rows_of(teacher, codec, dtype), "gram").sum().backward()
    got, want = leaf.grad.double().flatten(1), gradient_of_the_formula(student, teacher).flatten(1)
    assert torch.isfinite(got).all()
    if student.shape[1] == 1:  # the cosine is 1 for all maps
        assert want.abs().max() < 1e-12
        assert got.abs().max() < 1e-5
        return
    between = torch.cosine_similarity(got, want, dim=1)
    assert (1 - between).max() <= 1e-3  # seen: 4e-12 and 1e-6
    np.testing.assert_allclose(got.norm(dim=1), want.norm(dim=1), rtol=2e-3)  # seen: 5e-4


@pytest.mark.parametrize("rank", [1, 2, 5])
@every_dtype
@pytest.mark.parametrize("shape", [(3, 12, 5, 7), (3, 12, 3, 4), (3, 40, 3, 5)], ids=str)
def test_a_low_rank_changes_the_cosine_by_no_more_than_its_bound(rank, dtype, pair):
    student, teacher = pair
    rows = rows_of(teacher, "lowrank", dtype, rank)
    got = at_loss(torch.from_numpy(student), rows, "gram").double().sqrt().numpy()
    energy = np.array([best_of_rank(clip, rank)[1] for clip in teacher])
    assert (energy < 0.9999).all()
    bound = np.sqrt(2 - 2 * np.sqrt(energy))
    assert (np.abs(got - cosines(student, teacher)) <= bound + allowed("lowrank", dtype)).all()


@pytest.mark.parametrize("rank", [1, 3, 12])
@pytest.mark.parametrize("shape", [(3, 12, 5, 7), (3, 12, 3, 4), (3, 40, 3, 5)], ids=str)
@every_dtype
def test_low_rank_vectors_make_the_best_matrix_of_that_rank(rank, dtype, pair):
    _, teacher = pair
    rows = rows_of(teacher, "lowrank", dtype, rank)
    assert rows.data.shape == (3, *row_shape("lowrank", teacher.shape[1], 0, rank))
    for clip, maps in enumerate(teacher):
        want, energy = best_of_rank(maps, rank)
        vectors = rows.data[clip].double().numpy()
        # Entries of the vectors are at most 1 and rounded by eps/2: seen 4e-7 and 3.3e-4.
        np.testing.assert_allclose(
            vectors @ vectors.T, want, rtol=0, atol=4e-6 if dtype == torch.float32 else 1e-3
        )
        assert float(rows.energy[clip]) == pytest.approx(energy, rel=0, abs=1e-6)  # seen: 6e-8
        norm = np.linalg.norm(vectors @ vectors.T)
        assert float(rows.row_norm[clip]) == pytest.approx(norm, rel=1e-5)


@pytest.mark.parametrize("shape", [(3, 40, 3, 5), (2, 16, 1, 1), (3, 8, 5, 7)], ids=str)
def test_a_rank_beyond_the_positions_is_padded_with_zeros(shape, pair):
    _, teacher = pair
    channels, most = shape[1], min(shape[1], shape[2] * shape[3])
    full, padded = (rows_of(teacher, "lowrank", rank=rank) for rank in (most, channels + 3))
    assert padded.data.shape[2] == channels + 3
    assert not padded.data[:, :, most:].any()
    assert torch.equal(padded.data[:, :, :most], full.data)
    np.testing.assert_allclose(padded.energy, 1, rtol=0, atol=1e-6)


def test_energy_grows_with_the_rank(rng):
    maps = rng.random((4, 9, 4, 6), dtype=np.float32)
    kept = np.array([rows_of(maps, "lowrank", rank=rank).energy.numpy() for rank in range(1, 10)])
    assert (np.diff(kept, axis=0) >= 0).all()
    assert (kept[0] < 1).all()


@pytest.mark.parametrize("side", ["student", "frozen", "both"])
@every_dtype
@every_codec
@pytest.mark.parametrize(
    "shape", [(2, 6, 4, 5), (2, 6, 1, 2), (2, 3, 1, 3), (2, 6, 1, 1), (2, 1, 3, 3)], ids=str
)
def test_zero_maps_give_0_without_a_gradient_and_leave_their_neighbour_alone(
    shape, codec, dtype, side, pair
):
    student, teacher = pair
    alone = at_loss(torch.from_numpy(student), rows_of(teacher, codec, dtype), "gram")[1]
    if side != "frozen":
        student[0] = 0
    if side != "student":
        teacher[0] = 0
    rows = rows_of(teacher, codec, dtype)
    for found in (rows.data, rows.norm, rows.row_norm):
        assert torch.isfinite(found).all()
    leaf = torch.from_numpy(student).requires_grad_()
    loss = at_loss(leaf, rows, "gram")
    loss.sum().backward()
    assert loss[0] == 0
    assert leaf.grad.isfinite().all()
    assert not leaf.grad[0].any()
    torch.testing.assert_close(loss[1], alone, rtol=0, atol=1e-6)


def test_a_low_rank_row_of_zeros_keeps_all_of_its_energy():
    rows = rows_of(torch.zeros(2, 4, 3, 3), "lowrank", rank=2)
    assert not rows.data.any()
    assert rows.energy.tolist() == [1, 1]
    assert rows.norm.tolist() == rows.row_norm.tolist() == [0, 0]


@pytest.mark.parametrize("shape", [(2, 3, 5), (1, 6, 2), (3, 4, 4), (2, 1, 1)], ids=str)
def test_the_gradient_of_a_self_product_is_right(shape):
    x = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    assert torch.autograd.gradcheck(self_product, x.requires_grad_())
    assert torch.autograd.gradcheck(self_product, x.mT.detach().requires_grad_())


@every_shape
@every_codec
def test_mse_sigmoid_is_the_same_from_every_codec(codec, shape, rng):
    # mse-sigmoid is steep: its gradient is 0 in float32 unless maps are this close.
    student = rng.uniform(0.05, 1, shape)
    teacher = student + 0.02 * (rng.uniform(0.05, 1, shape) - 0.5)
    student, teacher = student.astype(np.float32), teacher.astype(np.float32)
    got = at_loss(torch.from_numpy(student), rows_of(teacher, codec), "gram", "mse-sigmoid")
    want = [
        similarity_loops(one, two, "gram", "mse-sigmoid")
        for one, two in zip(student, teacher, strict=True)
    ]
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-4)  # seen: 3e-5 for each codec


@every_dtype
@every_codec
@pytest.mark.parametrize("shape", [(3, 8, 5, 7), (3, 40, 3, 5)], ids=str)
def test_maps_in_channels_last_give_what_contiguous_ones_give(codec, dtype, pair):
    found = []
    for order in (torch.contiguous_format, torch.channels_last):
        student, teacher = (torch.from_numpy(m).to(memory_format=order) for m in pair)
        leaf = student.requires_grad_()
        loss = at_loss(leaf, rows_of(teacher, codec, dtype), "gram")
        loss.sum().backward()
        found.append((loss.detach(), leaf.grad))
    # Sums run in another order, so a float16 value may round to its other neighbour.
    torch.testing.assert_close(found[0][0], found[1][0], rtol=0, atol=allowed(codec, dtype))
    apart = (found[0][1] - found[1][1]).norm() / found[0][1].norm()
    assert apart <= (1e-3 if dtype == torch.float16 else 1e-4)


@every_shape
def test_one_side_serves_rows_of_every_codec_in_any_order(pair):
    student, teacher = pair
    want = cosines(student, teacher)
    for order in (CODECS, CODECS[::-1]):
        own = StudentMaps(torch.from_numpy(student))
        for codec in order:
            got = at_loss(own, rows_of(teacher, codec), "gram").double().sqrt().numpy()
            np.testing.assert_allclose(got, want, rtol=0, atol=1e-5, err_msg=codec)


@every_shape
@every_codec
def test_a_row_stands_for_the_gram_divided_by_its_norm(codec, pair):
    _, teacher = pair
    rows = rows_of(teacher, codec)
    assert rows.codec == codec
    for clip, maps in enumerate(teacher):
        matrix = gram_loops(maps)
        norm = np.linalg.norm(matrix)
        assert float(rows.norm[clip]) == pytest.approx(norm, rel=1e-6)
        got = rows.matrices(teacher.shape[1])[clip].double().numpy()
        np.testing.assert_allclose(got, matrix / norm, rtol=0, atol=1e-6)
        assert float(rows.row_norm[clip]) == pytest.approx(np.linalg.norm(got), rel=1e-5)


def test_the_exact_codec_is_the_smaller_but_for_a_tenth():
    taken = set()
    for channels in range(1, 30):
        for positions in range(1, 30):
            codec = exact_codec("gram", channels, positions)
            sizes = {
                name: np.prod(row_shape(name, channels, positions)) for name in ("packed", "factor")
            }
            assert 0.9 * sizes[codec] <= min(sizes.values())
            assert (codec == "factor") == (channels * positions <= 0.9 * packed_size(channels))
            taken.add(codec)
    assert taken == {"packed", "factor"}
    assert exact_codec("mean", 512, 1) == "map"


@pytest.mark.parametrize(
    ("codec", "shape"),
    [("packed", (10,)), ("factor", (4, 15)), ("lowrank", (4, 2)), ("map", (15,))],
)
def test_the_shape_of_a_row_is_known_before_it_is_made(codec, shape):
    assert row_shape(codec, 4, 15, 2) == shape
    aggregation: Aggregation = "max" if codec == "map" else "gram"
    rows = encode_rows(torch.rand(2, 4, 3, 5), aggregation, torch.float16, codec, 2)
    assert rows.data.shape == (2, *shape)
    assert rows.data.dtype == torch.float16
    assert (rows.energy is None) == (codec != "lowrank")


@pytest.mark.parametrize("codec", CODECS)
def test_a_map_cannot_be_held_as_a_gram_nor_a_gram_as_a_map(codec):
    with pytest.raises(InputError, match=f"`codec={codec}`: cannot hold the aggregation mean"):
        encode_rows(torch.rand(1, 2, 3, 3), "mean", torch.float32, codec)
    with pytest.raises(InputError, match="`codec=map`: cannot hold the aggregation gram"):
        encode_rows(torch.rand(1, 2, 3, 3), "gram", torch.float32, "map")


@pytest.mark.parametrize("scale", [1e6, 1e-6])
@every_codec
@every_dtype
def test_the_cosine_does_not_depend_on_the_scale_of_the_frozen_maps(codec, dtype, scale, rng):
    student, teacher = rng.uniform(0, 1, (2, 2, 16, 3, 4)).astype(np.float32)
    rows = rows_of(np.float32(scale) * teacher, codec, dtype)
    assert isinstance(rows, Rows)
    assert torch.isfinite(rows.data).all()
    got = at_loss(torch.from_numpy(student), rows, "gram").double().sqrt().numpy()
    np.testing.assert_allclose(got, cosines(student, teacher), rtol=0, atol=allowed(codec, dtype))
