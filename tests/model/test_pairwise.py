"""Pairwise similarity against loops in float64, and what it does not depend on."""

from typing import Any

import numpy as np
import pytest
import torch

from antigram.model.choices import Layer, similarity_of
from antigram.model.loss.at_loss import at_loss
from antigram.model.loss.codecs import Stack, encode_rows, exact_codec, packed_size, row_shape
from antigram.model.loss.compare import compare
from antigram.model.loss.gram import ShapeError, self_product
from antigram.model.loss.pairwise import debiased_cka, default_grid, pairwise_maps
from antigram.model.loss.shapes import check_grids, check_shapes
from antigram.model.loss.sources import LiveGrams, TapSpec
from antigram.model.nets.arch import Arch
from antigram.model.nets.vgg import Vgg
from antigram.model.training.config import TrainConfig
from antigram.pipeline.errors import InputError
from tests.reference.pairwise_loops import (
    centred_loops,
    cka_loops,
    debiased_cka_loops,
    pairwise_loops,
)

EPS = float(np.finfo(np.float32).eps)
CODECS = ("packed", "factor", "lowrank")
# (batch, channel, frame, freq) and grid: fewer positions than channels, more, averaged evenly,
# over windows that overlap, a single channel.
CASES = [
    ((2, 40, 3, 5), None),
    ((2, 6, 9, 11), None),
    ((2, 7, 8, 12), (4, 3)),
    ((2, 12, 19, 33), None),
    ((3, 5, 10, 7), (3, 5)),
    ((2, 1, 4, 4), None),
]
every_case = pytest.mark.parametrize(("shape", "grid"), CASES, ids=str)
every_codec = pytest.mark.parametrize("codec", CODECS)
ROUNDING = {torch.float32: 2e-6, torch.float16: 5e-4}


def drawn(shape, rng):
    return np.maximum(rng.standard_normal(shape) + 0.3, 0).astype(np.float32)


def pair(shape, rng):
    """Maps of two networks that resemble each other, so that no similarity is near 0."""
    student, noise = drawn(shape, rng), drawn(shape, rng)
    return student, (student + noise).astype(np.float32)


def rows_of(maps, codec="packed", dtype=torch.float32, grid=None):
    return encode_rows(torch.from_numpy(maps), "pairwise", dtype, codec, grid=grid)


def cka(student, rows):
    return at_loss(torch.from_numpy(student), rows, "pairwise").double().numpy()


def turned(maps, rng):
    """Maps whose channels are multiplied by an orthogonal matrix."""
    matrix, _ = np.linalg.qr(rng.standard_normal((maps.shape[1], maps.shape[1])))
    return np.einsum("dc,bchw->bdhw", matrix, maps).astype(np.float32)


@every_case
def test_centred_maps_match_loops(shape, grid, rng):
    maps = drawn(shape, rng)
    got = pairwise_maps(torch.from_numpy(maps), grid)
    want = np.stack([centred_loops(clip, grid).T for clip in maps])
    assert got.dtype == torch.float32
    np.testing.assert_allclose(got, want, rtol=0, atol=8 * EPS * maps.max())  # seen: 2 eps


@pytest.mark.parametrize("dtype", ROUNDING, ids=str)
@every_codec
@every_case
def test_cka_and_its_square_match_loops(shape, grid, codec, dtype, rng):
    student, teacher = pair(shape, rng)
    rows = rows_of(teacher, codec, dtype, grid)
    want = [cka_loops(one, two, grid) for one, two in zip(student, teacher, strict=True)]
    np.testing.assert_allclose(cka(student, rows), want, rtol=0, atol=ROUNDING[dtype])
    squared = at_loss(torch.from_numpy(student), rows, "pairwise", "cos2")
    np.testing.assert_allclose(squared, np.square(want), rtol=0, atol=2 * ROUNDING[dtype])


@every_codec
@every_case
def test_the_gradient_matches_finite_differences_of_loops(shape, grid, codec, rng):
    student, teacher = pair(shape, rng)
    leaf = torch.from_numpy(student).requires_grad_()
    at_loss(leaf, rows_of(teacher, codec, grid=grid), "pairwise").sum().backward()
    gradient, wide, step = leaf.grad.double().numpy(), student.astype(np.float64), 1e-6

    def total(maps):
        return sum(cka_loops(one, two, grid) for one, two in zip(maps, teacher, strict=True))

    scale = float(np.linalg.norm(gradient))
    for direction in (gradient / max(scale, 1e-6), *rng.standard_normal((2, *shape))):
        want = (total(wide + step * direction) - total(wide - step * direction)) / (2 * step)
        assert np.vdot(gradient, direction) == pytest.approx(want, rel=1e-4, abs=1e-4 * scale)


@every_codec
@every_case
def test_a_row_stands_for_k_over_its_norm_and_has_the_shape_that_was_said(shape, grid, codec, rng):
    maps = drawn(shape, rng)
    rows = rows_of(maps, codec, grid=grid)
    frames, freqs = grid or default_grid(shape[2:])
    side = frames * freqs
    assert rows.grid == (frames, freqs)
    assert rows.data.shape[1:] == row_shape(codec, shape[1], side, side, "pairwise")
    for clip, matrix in enumerate(rows.matrices(side)):
        want = pairwise_loops(maps[clip], grid)
        norm = np.linalg.norm(want)
        assert float(rows.norm[clip]) == pytest.approx(norm, rel=1e-5)
        np.testing.assert_allclose(matrix, want / norm, rtol=0, atol=2e-6)
        assert float(rows.row_norm[clip]) == pytest.approx(np.linalg.norm(matrix), rel=1e-5)


def test_a_factor_is_stored_as_the_centred_maps_over_the_root_of_their_norm(rng):
    maps = drawn((2, 3, 6, 7), rng)
    for clip, got in enumerate(rows_of(maps, "factor").data):
        centred = centred_loops(maps[clip])
        want = centred / np.sqrt(np.linalg.norm(centred @ centred.T))
        np.testing.assert_allclose(got, want, rtol=0, atol=1e-6)


def test_auto_takes_the_smaller_form_but_for_a_tenth():
    for channels in (1, 8, 27, 28, 29, 64, 512):
        for positions in (1, 9, 56, 256):
            sizes = {
                "factor": channels * positions,
                "packed": packed_size(positions),
            }
            codec = exact_codec("pairwise", channels, positions)
            assert 0.9 * sizes[codec] <= min(sizes.values())


def test_the_default_grid_has_at_most_16_positions_along_an_axis():
    assert [default_grid(size) for size in ((126, 129), (31, 32), (15, 16), (7, 8), (3, 40))] == [
        (16, 16),
        (16, 16),
        (15, 16),
        (7, 8),
        (3, 16),
    ]


@every_codec
def test_shuffled_or_rotated_channels_and_scale_change_nothing(codec, rng):
    student, teacher = pair((2, 12, 9, 7), rng)
    want = cka(student, rows_of(teacher, codec))
    others = {
        "shuffled": teacher[:, rng.permutation(12)],
        "rotated": turned(teacher, rng),
        "scaled": np.float32(1e-3) * teacher,
    }
    for name, other in others.items():
        got = cka(student, rows_of(other, codec))
        np.testing.assert_allclose(got, want, rtol=0, atol=2e-6, err_msg=name)
        np.testing.assert_allclose(cka(teacher, rows_of(other, codec)), 1, rtol=0, atol=2e-6)
    grams = [
        at_loss(torch.from_numpy(student), encode_rows(torch.from_numpy(m), "gram", torch.float32))
        for m in (teacher, others["shuffled"], others["rotated"])
    ]
    assert all((grams[0] - other).abs().max() > 0.01 for other in grams[1:])


def test_a_scale_of_one_channel_changes_it(rng):
    student, teacher = pair((2, 12, 9, 7), rng)
    want = cka(student, rows_of(teacher))
    teacher[:, 0] *= 10
    assert np.abs(cka(student, rows_of(teacher)) - want).min() > 1e-3


@every_codec
def test_teachers_of_several_widths_are_compared_at_once(codec, rng):
    student = drawn((3, 10, 9, 7), rng)
    teachers = [drawn((3, channels, 6, 9), rng) for channels in (4, 10, 4, 25)]
    rows = [rows_of(maps, codec, grid=(6, 5)) for maps in teachers]
    stacks = [Stack.of([rows[0], rows[2]]), Stack.of(rows[1:2]), Stack.of(rows[3:])]
    weights = [0.5, -1.0, 2.0, 1.0]
    leaf = torch.from_numpy(student).requires_grad_()
    total, means = compare(leaf, stacks, weights, "pairwise")
    total.backward()
    want = [
        np.mean([cka_loops(own, maps, (6, 5)) for own, maps in zip(student, t, strict=True)])
        for t in (teachers[0], teachers[2], teachers[1], teachers[3])
    ]
    np.testing.assert_allclose(means, want, rtol=0, atol=2e-6)
    assert total.item() == pytest.approx(
        float(torch.tensor(weights, dtype=torch.float64) @ torch.tensor(want)), abs=4e-6
    )
    alone = torch.from_numpy(student).requires_grad_()
    loss = torch.zeros(())
    for weight, teacher in zip(weights, (rows[0], rows[2], rows[1], rows[3]), strict=True):
        loss = loss + weight * at_loss(alone, teacher, "pairwise").mean()
    loss.backward()
    torch.testing.assert_close(leaf.grad, alone.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("channels", [5, 70], ids=["the graph begins at the maps", "at K"])
@pytest.mark.parametrize("codec", ["packed", "factor"])
def test_the_memory_format_and_parts_of_a_batch_change_nothing(channels, codec, rng, monkeypatch):
    student, teacher = pair((6, channels, 9, 7), rng)
    stacks = [Stack.of([rows_of(teacher, codec)])]

    def gradient(maps):
        leaf = maps.requires_grad_()
        compare(leaf, stacks, [1.0], "pairwise")[0].backward()
        return leaf.grad

    want = gradient(torch.from_numpy(student))
    last = torch.from_numpy(student).to(memory_format=torch.channels_last)
    torch.testing.assert_close(gradient(last.clone()), want, rtol=1e-4, atol=1e-7)
    monkeypatch.setattr("antigram.model.loss.compare._MOST_FLOATS", 1)
    torch.testing.assert_close(gradient(torch.from_numpy(student)), want, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("level", [0.0, 0.1, 3e4], ids=["silent", "constant", "large constant"])
@pytest.mark.parametrize("side", ["student", "teacher", "both"])
@pytest.mark.parametrize("dtype", ROUNDING, ids=str)
@every_codec
def test_a_side_without_variation_gives_0_and_leaves_its_neighbour_alone(
    level, side, dtype, codec, rng
):
    student, teacher = pair((2, 6, 33, 21), rng)
    alone = cka(student, rows_of(teacher, codec, dtype))
    if side != "teacher":
        student[0] = level
    if side != "student":
        teacher[0] = level
    rows = rows_of(teacher, codec, dtype)
    for similarity in ("cka", "cos2"):
        leaf = torch.from_numpy(student).requires_grad_()
        loss = at_loss(leaf, rows, "pairwise", similarity)
        loss.sum().backward()
        assert loss[0] == 0
        assert leaf.grad.isfinite().all()
        assert not leaf.grad[0].any()
        assert leaf.grad[1].any()
        if similarity == "cka":
            assert loss[1].item() == alone[1]


def test_a_single_position_gives_0(rng):
    student, teacher = pair((2, 6, 4, 4), rng)
    leaf = torch.from_numpy(student).requires_grad_()
    loss = at_loss(leaf, rows_of(teacher, grid=(1, 1)), "pairwise")
    loss.sum().backward()
    assert not loss.any()
    assert not leaf.grad.any()


@pytest.mark.parametrize("scale", [1e-5, 1e-10, 1e-20])
@every_codec
def test_a_layer_that_is_all_but_dead_cannot_blow_up_the_loss(codec, scale, rng):
    student, teacher = pair((2, 16, 12, 9), rng)
    student[0] *= np.float32(scale)
    leaf = torch.from_numpy(student).requires_grad_()
    total, _ = compare(leaf, [Stack.of([rows_of(teacher, codec)])], [1.0], "pairwise")
    total.backward()
    assert 0 <= total.item() <= 1
    assert leaf.grad.isfinite().all()
    assert leaf.grad[1].any()


def test_loss_is_the_same_under_autocast(rng):
    student, teacher = pair((2, 6, 20, 9), rng)
    rows = rows_of(teacher)
    with torch.autocast("cpu", torch.bfloat16):
        inside = cka(student, rows), rows_of(teacher).data
    np.testing.assert_array_equal(inside[0], cka(student, rows))
    assert torch.equal(inside[1], rows.data)


def test_what_cannot_be_compared_is_refused(rng):
    student, teacher = pair((2, 6, 9, 7), rng)
    maps = torch.from_numpy(student)
    with pytest.raises(InputError, match=r"maps of 9 x 7 positions are smaller than .* 9 x 8"):
        at_loss(maps, rows_of(drawn((2, 6, 9, 8), rng)), "pairwise")
    with pytest.raises(InputError, match="the rows are pairwise; give their aggregation"):
        at_loss(maps, rows_of(teacher))
    grams = encode_rows(torch.from_numpy(teacher), "gram", torch.float32)
    with pytest.raises(InputError, match="the rows are not pairwise"):
        at_loss(maps, grams, "pairwise")
    with pytest.raises(InputError, match="`similarity=mse-sigmoid`"):
        at_loss(maps, rows_of(teacher), "pairwise", "mse-sigmoid")
    with pytest.raises(InputError, match=r"these maps need \(2, 2016\): the same segments"):
        at_loss(maps, rows_of(teacher[:1]), "pairwise")
    stacks = [Stack.of([rows_of(teacher, grid=grid)]) for grid in ((3, 4), (4, 3))]
    with pytest.raises(InputError, match="wanted the same"):
        compare(maps, stacks, [1.0, 1.0], "pairwise")
    with pytest.raises(InputError, match="`codec=map`: cannot hold the aggregation pairwise"):
        encode_rows(maps, "pairwise", torch.float32, "map")
    with pytest.raises(InputError, match="grid: belongs to the aggregation pairwise"):
        encode_rows(maps, "gram", torch.float32, grid=(3, 3))
    with pytest.raises(ShapeError, match="maps must be"):
        pairwise_maps(maps[0])


def test_a_student_of_another_width_is_taken_and_one_of_smaller_maps_is_not():
    spec = TapSpec(arch=Arch("vgg16", 4), layers=(5, 13), aggregation="pairwise")
    check_shapes(Arch("vgg16", 2), spec, (126, 129))
    # Layer 5 of a VGG11 has maps of 15 x 16 positions.
    with pytest.raises(InputError, match=r"layer 5: .* 15 x 16 positions, .* of 16 x 16"):
        check_shapes(
            Arch("vgg11", 4),
            TapSpec(arch=Arch("vgg16", 4), layers=(5,), aggregation="pairwise"),
            (126, 129),
        )
    small = TapSpec(arch=Arch("vgg16", 4), layers=(5,), aggregation="pairwise", grids={5: (15, 16)})
    check_shapes(Arch("vgg11", 4), small, (126, 129))


def test_grids_that_do_not_fit_are_refused():
    def spec(aggregation="pairwise", **grids):
        given: dict[Layer, tuple[int, int]] = {
            int(layer[1:]): grid for layer, grid in grids.items()
        }
        return TapSpec(arch=Arch("vgg16", 2), layers=(5, 13), aggregation=aggregation, grids=given)

    with pytest.raises(InputError, match="grids: go with `aggregation=pairwise`, not gram"):
        spec("gram", n5=(4, 4))
    with pytest.raises(InputError, match=r"layer 5 is \(4, 0\); wanted at least 1 x 1"):
        spec(n5=(4, 0))
    with pytest.raises(InputError, match=r"layer 13 is 8 x 8, .* have 7 x 8 positions"):
        check_shapes(Arch("vgg16", 2), spec(n13=(8, 8)), (126, 129))
    with pytest.raises(InputError, match=r"layer 13: the teacher b has the grid \(4, 4\), a "):
        check_grids({"a": spec(), "b": spec(n13=(4, 4))}, (126, 129))
    check_grids({"a": spec(n5=(4, 4)), "b": spec(n5=(4, 4))}, (126, 129))


def test_a_live_teachers_identity_has_a_grid_that_is_not_the_default():
    net = Vgg(Arch("vgg16", 1), 0)
    given: list[dict[Layer, tuple[int, int]]] = [{}, {5: (4, 4)}, {5: (4, 3)}]
    specs = [
        TapSpec(arch=net.arch, layers=(5, 9), aggregation="pairwise", grids=grids)
        for grids in given
    ]
    found = [LiveGrams(net, spec).identity for spec in specs]
    assert len({each["5"] for each in found}) == 3
    assert len({each["9"] for each in found}) == 1


def test_cka_is_the_default_with_pairwise_and_belongs_to_it():
    assert [similarity_of(name) for name in ("gram", "max", "pairwise")] == ["cos2", "cos2", "cka"]
    given: dict[str, Any] = {"mode": "cached", "task": "word", "arch": Arch("vgg16", 2)}
    assert TrainConfig(**given).to_json()["similarity"] == "cos2"
    assert TrainConfig(**given, aggregation="pairwise").to_json()["similarity"] == "cka"
    config = TrainConfig(**given, aggregation="pairwise", similarity="cos2")
    assert config.similarity == "cos2"
    with pytest.raises(InputError, match="`similarity=cka` belongs to"):
        TrainConfig(**given, similarity="cka")
    with pytest.raises(InputError, match="`similarity=mse-sigmoid`"):
        TrainConfig(**given, aggregation="pairwise", similarity="mse-sigmoid")


def kernels(maps):
    return self_product(pairwise_maps(torch.from_numpy(maps)))


@pytest.mark.parametrize("shape", [(2, 5, 2, 2), (2, 6, 3, 5), (1, 40, 4, 7)], ids=str)
def test_debiased_cka_matches_loops(shape, rng):
    student, teacher = pair(shape, rng)
    got = debiased_cka(kernels(student), kernels(teacher))
    want = [
        debiased_cka_loops(pairwise_loops(one), pairwise_loops(two))
        for one, two in zip(student, teacher, strict=True)
    ]
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-5)
    np.testing.assert_allclose(debiased_cka(kernels(student), kernels(student)), 1, atol=1e-12)


def test_debiased_cka_does_not_depend_on_centring_scale_or_codec(rng):
    student, teacher = pair((2, 6, 5, 4), rng)
    want = debiased_cka(kernels(student), kernels(teacher))
    raw = self_product(torch.from_numpy(teacher).flatten(2).mT)
    np.testing.assert_allclose(debiased_cka(kernels(student), raw), want, atol=1e-5)
    stored = rows_of(teacher, "factor").matrices(20)
    np.testing.assert_allclose(debiased_cka(kernels(student), stored), want, atol=1e-5)


def test_plain_cka_of_independent_maps_is_biased_and_the_debiased_value_is_not(rng):
    shape = (40, 64, 7, 8)
    one, two = (rng.standard_normal(shape).astype(np.float32) for _ in range(2))
    plain = cka(one, rows_of(two))
    assert plain.mean() == pytest.approx(64 / (64 + 56 - 1), abs=0.02)  # seen: 0.54
    assert abs(float(debiased_cka(kernels(one), kernels(two)).mean())) < 0.01


def test_debiased_cka_of_a_silent_side_is_0_and_too_few_positions_are_refused(rng):
    maps = drawn((2, 5, 3, 4), rng)
    silent = np.zeros_like(maps)
    assert not debiased_cka(kernels(maps), kernels(silent)).any()
    with pytest.raises(ShapeError, match=r"must be \(batch, P>3, P\)"):
        debiased_cka(kernels(maps[:, :, :1, :3]), kernels(maps[:, :, :1, :3]))
    with pytest.raises(ShapeError, match="alike"):
        debiased_cka(kernels(maps), kernels(maps[:1]))
