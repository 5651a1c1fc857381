"""Int8 rows: the error of values, similarities and gradients, against rows in float32."""

import numpy as np
import pytest
import torch

from antigram.model.loss.at_loss import at_loss
from antigram.model.loss.codecs import Stack, encode_rows
from antigram.model.loss.int8 import round_to_int8, widen
from antigram.model.loss.student_maps import StudentMaps
from antigram.pipeline.errors import InputError

# Aggregation, codec, similarity.
FORMS = {
    "packed": ("gram", "packed", "cos2"),
    "factor": ("gram", "factor", "cos2"),
    "lowrank": ("gram", "lowrank", "cos2"),
    "packed, mse": ("gram", "packed", "mse-sigmoid"),
    "factor, mse": ("gram", "factor", "mse-sigmoid"),
    "pairwise": ("pairwise", "packed", "cka"),
    "pairwise factor": ("pairwise", "factor", "cka"),
    "pairwise lowrank": ("pairwise", "lowrank", "cos2"),
}
every_form = pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)


def maps_of(rng, clips=24, channels=48, size=(9, 10)):
    """Return maps as after a ReLU, whose channels differ in loudness as those of trained networks.

    Segments share half of their structure, so that their similarities are neither near 0 nor 1.
    """
    shared, own = (rng.standard_normal((n, channels, *size)) for n in (1, clips))
    loudness = np.exp(1.2 * rng.standard_normal((channels, 1, 1)))
    return torch.from_numpy(np.maximum((shared + own) * loudness, 0).astype(np.float32))


@pytest.fixture
def pair(rng, form):
    """Return maps of a student and of a teacher; no segment is silent.

    For the mean squared error of Grams they are so quiet that its sigmoid is not flat.
    """
    teacher = maps_of(rng)
    quiet = 0.1 if form[0::2] == ("gram", "mse-sigmoid") else 1
    return quiet * (0.5 * teacher + maps_of(rng)), quiet * teacher


def rows_in(dtype, teacher, form):
    aggregation, codec, _ = form
    return encode_rows(teacher, aggregation, dtype, codec, rank=12)


@every_form
def test_a_similarity_is_off_by_less_than_a_thousandth(form, pair):
    student, teacher = pair
    got, want = (
        at_loss(student, rows_in(dtype, teacher, form), form[0], form[2]).double()
        for dtype in (torch.int8, torch.float32)
    )
    assert float(want.std()) > 1e-3  # they differ by more than the error
    torch.testing.assert_close(got, want, rtol=0, atol=1e-3)  # seen: 4e-4


@every_form
def test_the_gradient_is_off_by_less_than_a_hundredth_of_its_norm(form, pair):
    student, teacher = pair
    gradients = []
    for dtype in (torch.int8, torch.float32):
        own = student.clone().requires_grad_()
        at_loss(own, rows_in(dtype, teacher, form), form[0], form[2]).sum().backward()
        gradients.append(own.grad.double().flatten(1))
    got, want = gradients
    apart = (got - want).norm(dim=1) / want.norm(dim=1)
    assert float(apart.max()) < 0.01  # seen: 6e-3


@every_form
def test_stored_values_are_int8_and_the_scales_float16(form, pair):
    rows = rows_in(torch.int8, pair[1], form)
    wide = rows_in(torch.float32, pair[1], form)
    assert (rows.data.dtype, rows.data.shape) == (torch.int8, wide.data.shape)
    side = {"gram": 48, "pairwise": 90}[form[0]]
    assert rows.scale is not None
    assert (rows.scale.dtype, tuple(rows.scale.shape)) == (torch.float16, (24, side))
    assert int(rows.data.abs().max()) == 127
    assert rows.arrays()[0] is rows.data
    assert rows.arrays()[-1] is rows.scale


@every_form
def test_a_widened_row_is_within_half_a_step_of_the_row(form, pair):
    rows, wide = (rows_in(dtype, pair[1], form) for dtype in (torch.int8, torch.float32))
    scale = rows.scale.double()
    if form[1] == "packed":
        i, j = np.triu_indices(scale.shape[1])
        step = scale[:, i] * scale[:, j] * torch.from_numpy(np.where(i == j, 1, 2**0.5))
    else:
        step = scale[:, :, None]
    apart = (rows.widened().columns.double() - wide.columns.double()).abs()
    # Half a step of 1/127, and the rounding of the scale at the largest value, 2^-11.
    assert bool((apart <= step * (0.5 / 127 + 1e-5)).all())
    assert rows.widened().scale is None
    torch.testing.assert_close(rows.norm, wide.norm, rtol=0, atol=0)


@every_form
def test_the_row_norm_is_that_of_the_widened_row(form, pair):
    rows = rows_in(torch.int8, pair[1], form)
    stands = rows.widened().columns.double()
    if form[1] in ("factor", "lowrank"):
        stands = stands @ stands.mT
    want = stands.flatten(1).norm(dim=1)
    torch.testing.assert_close(rows.row_norm.double(), want, rtol=1e-6, atol=0)


@every_form
def test_a_silent_segment_is_zeros_and_has_no_gradient(form, pair):
    student, teacher = pair
    teacher = torch.cat([teacher[:1], torch.zeros_like(teacher[:1])])
    rows = rows_in(torch.int8, teacher, form)
    assert not rows.data[1].any()
    assert not rows.widened().data[1].any()
    own = student[:2].clone().requires_grad_()
    loss = at_loss(own, rows, form[0], form[2])
    loss.sum().backward()
    assert own.grad is not None
    assert bool(torch.isfinite(own.grad).all())
    if form[2] != "mse-sigmoid":
        assert float(loss.detach()[1]) == 0
        assert not own.grad[1].any()


def test_quiet_channels_keep_their_share_of_a_gram(rng):
    """With a single scale for a segment, their entries would all be rounded to zero."""
    teacher = maps_of(rng)
    teacher[:, 8:] *= 1e-2
    exact, rows = (encode_rows(teacher, "gram", d, "packed") for d in (torch.float32, torch.int8))
    want, got = exact.matrices(48)[:, 8:, 8:], rows.widened().matrices(48)[:, 8:, 8:]
    one_scale = (exact.matrices(48) * 127 / exact.matrices(48).amax((1, 2), keepdim=True)).round()
    assert float(one_scale[:, 8:, 8:].abs().max()) <= 1
    apart = (got - want).flatten(1).norm(dim=1) / want.flatten(1).norm(dim=1)
    assert float(apart.max()) < 0.02


def test_stacked_int8_rows_are_those_of_one_teacher_after_the_other(rng):
    teachers = [maps_of(rng) for _ in range(3)]
    student = StudentMaps(maps_of(rng))
    for codec in ("packed", "factor", "lowrank"):
        rows = [encode_rows(maps, "gram", torch.int8, codec, rank=5) for maps in teachers]
        together = student.inner(Stack.of(rows))
        alone = torch.cat([student.inner(Stack.of([each])) for each in rows], 1)
        torch.testing.assert_close(together, alone, rtol=1e-5, atol=0)


def test_values_come_back_exactly_where_they_are_multiples_of_the_step():
    whole = torch.tensor([[-127, 64, 0, 3], [127, -1, 2, 100]])
    values = whole.float() / 254  # a largest value of 0.5, which is a float16
    data, scale = round_to_int8(values[None], "factor", 2)
    assert torch.equal(data[0].long(), whole)
    torch.testing.assert_close(widen(data, scale, "factor")[0], values, rtol=1e-7, atol=0)


def test_maps_of_other_aggregations_are_refused(rng):
    with pytest.raises(InputError, match="`dtype=int8`: holds the aggregations gram and pairwise"):
        encode_rows(maps_of(rng), "mean", torch.int8)
