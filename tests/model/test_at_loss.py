import numpy as np
import pytest
import torch

from antigram.model.choices import AGGREGATIONS
from antigram.model.loss.at_loss import at_loss, check_combination, released_loss
from antigram.model.loss.codecs import Rows, Stack, encode_rows
from antigram.model.loss.compare import compare
from antigram.model.loss.shapes import check_shapes
from antigram.model.loss.sources import TapSpec
from antigram.model.nets.arch import Arch
from antigram.pipeline.errors import InputError
from tests.reference.gram_loops import released_loops, similarity_loops

SHAPES = [(1, 1, 1, 1), (3, 8, 5, 7), (2, 64, 17, 4)]
EVERY = pytest.mark.parametrize(
    ("aggregation", "similarity"),
    [
        *((name, how) for name in AGGREGATIONS[:-1] for how in ("cos2", "mse-sigmoid")),
        ("pairwise", "cka"),
        ("pairwise", "cos2"),
    ],
)


def pair(shape, rng, similarity):
    # mse-sigmoid is steep: its gradient is 0 in float32 unless maps are this close.
    student, teacher = rng.uniform(0.05, 1, (2, *shape))
    if similarity == "mse-sigmoid":
        teacher = student + 0.02 * (teacher - 0.5)
    return student.astype(np.float32), teacher.astype(np.float32)


def total(student, teacher, aggregation, similarity):
    return sum(
        similarity_loops(one, two, aggregation, similarity)
        for one, two in zip(student, teacher, strict=True)
    )


@EVERY
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_loss_matches_loops(shape, aggregation, similarity, rng):
    student, teacher = pair(shape, rng, similarity)
    rows = encode_rows(torch.from_numpy(teacher), aggregation, torch.float32)
    got = at_loss(torch.from_numpy(student), rows, aggregation, similarity)
    want = [
        similarity_loops(one, two, aggregation, similarity)
        for one, two in zip(student, teacher, strict=True)
    ]
    assert got.shape == (shape[0],)
    np.testing.assert_allclose(got, want, rtol=0, atol=2e-6)


@EVERY
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_gradient_matches_finite_differences_of_loops(shape, aggregation, similarity, rng):
    student, teacher = pair(shape, rng, similarity)
    rows = encode_rows(torch.from_numpy(teacher), aggregation, torch.float32)
    leaf = torch.from_numpy(student).requires_grad_()
    at_loss(leaf, rows, aggregation, similarity).sum().backward()
    gradient, wide = leaf.grad.double().numpy(), student.astype(np.float64)
    step, scale = 1e-7, float(np.linalg.norm(gradient))
    along = gradient / scale if scale > 1e-4 else np.zeros_like(gradient)
    for direction in (along, *rng.standard_normal((2, *shape))):
        ahead = total(wide + step * direction, teacher, aggregation, similarity)
        behind = total(wide - step * direction, teacher, aggregation, similarity)
        want = (ahead - behind) / (2 * step)
        assert np.vdot(gradient, direction) == pytest.approx(
            want, rel=2e-4, abs=2e-4 * scale + 1e-6
        )


def test_cosine_of_one_channel_is_1_and_has_no_gradient():
    leaf = torch.rand(2, 1, 4, 4).requires_grad_()
    rows = encode_rows(torch.rand(2, 1, 4, 4) + 0.1, "gram", torch.float32)
    loss = at_loss(leaf, rows, "gram")
    np.testing.assert_allclose(loss.detach(), 1, atol=1e-6)
    loss.sum().backward()
    assert leaf.grad.abs().max() < 1e-5


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=["f16", "f32"])
@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_a_net_compared_with_itself_gives_1(aggregation, dtype, rng):
    maps = torch.from_numpy(rng.uniform(0, 1, (3, 16, 9, 5)).astype(np.float32))
    loss = at_loss(maps, encode_rows(maps, aggregation, dtype), aggregation)
    # seen: 4e-8; without the norm of the rounded row float16 was off by 1e-4
    np.testing.assert_allclose(loss, 1, rtol=0, atol=1e-6)


def test_mse_sigmoid_of_a_net_with_itself_is_minus_a_half(rng):
    maps = torch.from_numpy(rng.uniform(0, 1, (2, 8, 5, 7)).astype(np.float32))
    rows = encode_rows(maps, "gram", torch.float32)
    np.testing.assert_allclose(at_loss(maps, rows, "gram", "mse-sigmoid"), -0.5, atol=1e-6)


@pytest.mark.parametrize("aggregation", ["gram", "mean", "sum", "max"])
@pytest.mark.parametrize("side", ["student", "frozen", "both"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=["f16", "f32"])
def test_a_silent_clip_gives_0_and_no_gradient_and_leaves_its_neighbour_alone(
    aggregation, side, dtype, rng
):
    student, teacher = rng.uniform(0.1, 1, (2, 2, 6, 5, 4)).astype(np.float32)
    rows = encode_rows(torch.from_numpy(teacher), aggregation, dtype)
    alone = at_loss(torch.from_numpy(student), rows, aggregation)
    if side != "frozen":
        student[0] = 0
    if side != "student":
        teacher[0] = 0
    rows = encode_rows(torch.from_numpy(teacher), aggregation, dtype)
    leaf = torch.from_numpy(student).requires_grad_()
    loss = at_loss(leaf, rows, aggregation)
    loss.sum().backward()
    assert loss[0] == 0
    assert torch.equal(loss[1].detach(), alone[1])
    assert leaf.grad.isfinite().all()
    assert not leaf.grad[0].any()
    assert leaf.grad[1].any()


@pytest.mark.parametrize("similarity", ["cos2", "mse-sigmoid"])
def test_a_dead_layer_has_a_finite_gradient_in_front_of_its_relu(similarity):
    before = torch.full((2, 3, 4, 4), -1.0, requires_grad=True)
    rows = encode_rows(torch.rand(2, 3, 4, 4), "gram", torch.float32)
    at_loss(before.relu(), rows, "gram", similarity).sum().backward()
    assert before.grad.equal(torch.zeros_like(before))


@pytest.mark.parametrize("scale", [1e-5, 1e-10, 1e-12, 1e-15, 1e-20])
@pytest.mark.parametrize("codec", ["packed", "factor", "lowrank"])
def test_a_layer_that_is_all_but_dead_cannot_blow_up_the_loss(codec, scale, rng):
    student, teacher = rng.uniform(0, 1, (2, 2, 16, 12, 9)).astype(np.float32)
    rows = encode_rows(torch.from_numpy(teacher), "gram", torch.float16, codec, rank=4)
    student[0] *= np.float32(scale)
    leaf = torch.from_numpy(student).requires_grad_()
    total, means = compare(leaf, [Stack.of([rows])], [1.0], "gram")
    total.backward()
    assert 0 <= total.item() <= 1
    assert means.shape == (1,)
    assert torch.isfinite(leaf.grad[1]).all()
    assert leaf.grad[1].any()
    assert torch.isfinite(leaf.grad[0]).all()
    # The cosine does not depend on scale, so that its gradient grows by 1 / scale, up to a bound.
    largest = leaf.grad[0].abs().max()
    assert largest < 1e10
    if scale == 1e-5:
        assert largest > 1e3 * leaf.grad[1].abs().max()


@pytest.mark.parametrize("scale", [1e6, 1e3, 1e-3, 1e-6])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=["f16", "f32"])
def test_cosine_does_not_depend_on_the_scale_of_either_net(scale, dtype, rng):
    student, teacher = rng.uniform(0, 1, (2, 2, 16, 12, 9))
    small, large = (
        at_loss(
            torch.from_numpy((k * student).astype(np.float32)),
            encode_rows(torch.from_numpy((k * teacher).astype(np.float32)), "gram", dtype),
            "gram",
        )
        for k in (1, scale)
    )
    np.testing.assert_allclose(large, small, rtol=0, atol=1e-5)


def test_the_norm_counts_for_mse_sigmoid_and_not_for_the_cosine(rng):
    student, teacher = (
        torch.from_numpy(m) for m in rng.uniform(0, 0.3, (2, 1, 4, 3, 3)).astype(np.float32)
    )
    near, far = (encode_rows(k * teacher, "gram", torch.float32) for k in (1, 2))
    torch.testing.assert_close(at_loss(student, near, "gram"), at_loss(student, far, "gram"))
    apart = at_loss(student, near, "gram", "mse-sigmoid") - at_loss(
        student, far, "gram", "mse-sigmoid"
    )
    assert apart.abs() > 1e-3


def test_loss_is_the_same_under_autocast(rng):
    student, teacher = (
        torch.from_numpy(m) for m in rng.uniform(0, 1, (2, 2, 8, 5, 7)).astype(np.float32)
    )
    rows = encode_rows(teacher, "gram", torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        inside, released = at_loss(student, rows, "gram"), released_loss(student, teacher)
    assert torch.equal(inside, at_loss(student, rows, "gram"))
    assert torch.equal(released, released_loss(student, teacher))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_released_loss_matches_loops(shape, rng):
    student, teacher = np.maximum(rng.standard_normal((2, *shape), dtype=np.float32), 0) + 0.01
    leaf = torch.from_numpy(student).requires_grad_()
    got = released_loss(leaf, torch.from_numpy(teacher))
    assert got.item() == pytest.approx(released_loops(student, teacher), rel=0, abs=2e-6)
    got.backward()
    wide, step = student.astype(np.float64), 1e-5
    direction = rng.standard_normal(shape)
    want = (
        released_loops(wide + step * direction, teacher)
        - released_loops(wide - step * direction, teacher)
    ) / (2 * step)
    along = float(np.vdot(leaf.grad.double().numpy(), direction))
    assert along == pytest.approx(want, rel=1e-3, abs=1e-5)


def test_released_loss_of_a_dead_layer_is_0_and_its_gradient_finite():
    leaf = torch.zeros(2, 3, 4, 4, requires_grad=True)
    loss = released_loss(leaf, torch.rand(2, 3, 4, 4))
    loss.backward()
    assert loss.item() == 0
    assert leaf.grad.isfinite().all()


@pytest.mark.parametrize(
    ("student", "layer", "own", "theirs"),
    [
        (Arch("vgg16", 2), 1, "2 channels x 16254", "4 x 16254"),
        (Arch("vgg11", 4), 3, "16 channels x 992", "8 x 4032"),
    ],
    ids=["width", "arch"],
)
def test_a_student_of_another_shape_is_refused_at_the_layer(student, layer, own, theirs):
    spec = TapSpec(arch=Arch("vgg16", 4), layers=(layer,))
    with pytest.raises(InputError, match=f"layer {layer}: .*has {own} positions, .*{theirs}"):
        check_shapes(student, spec, (126, 129))


def test_another_arch_is_taken_where_it_has_the_same_shape():
    check_shapes(Arch("vgg13", 4), TapSpec(arch=Arch("vgg16", 4), layers=(1, 4)), (126, 129))


def test_a_layer_the_student_lacks_is_refused():
    spec = TapSpec(arch=Arch("vgg16", 4), layers=(13,))
    with pytest.raises(InputError, match="`layers` 13: vgg11 has convolution layers 1 to 8"):
        check_shapes(Arch("vgg11", 4), spec, (126, 129))


def test_combinations_without_a_meaning_are_refused():
    with pytest.raises(InputError, match="'l2'; wanted: cos2, mse-sigmoid"):
        check_combination("gram", "relu", "l2")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="`aggregation=compmul` needs values >= 0"):
        check_combination("compmul", "conv", "cos2")
    for name in AGGREGATIONS[:-1]:
        with pytest.raises(InputError, match="`similarity=cka` belongs to `aggregation=pairwise`"):
            check_combination(name, "relu", "cka")
    with pytest.raises(InputError, match="`similarity=mse-sigmoid`: `aggregation=pairwise` takes"):
        check_combination("pairwise", "relu", "mse-sigmoid")
    check_combination("compmul", "relu", "mse-sigmoid")
    check_combination("pairwise", "conv", "cka")
    check_combination("gram", "conv", "cos2")


@pytest.mark.parametrize(
    ("shape", "codec", "rows", "match"),
    [
        ((3, 4, 5), "packed", (3, 10), r"maps are \(3, 4, 5\), wanted \(batch, channel"),
        ((3, 4, 5, 2), "packed", (3, 36), r"are \(3, 36\), these maps need \(3, 10\)"),
        ((3, 4, 5, 2), "factor", (3, 4, 11), r"these maps need \(3, 4, 10\)"),
        ((3, 4, 5, 2), "lowrank", (3, 8, 2), r"these maps need \(3, 4, 2\)"),
        ((2, 4, 5, 2), "packed", (3, 10), r"these maps need \(2, 10\): the same segments"),
    ],
)
def test_rows_that_do_not_fit_the_maps_are_refused(shape, codec, rows, match):
    one = torch.ones(rows[0])
    with pytest.raises(InputError, match=match):
        at_loss(torch.ones(shape), Rows(codec, torch.ones(rows), one, one))
