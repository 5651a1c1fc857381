"""The closed form of the AT loss equals its definition, in value and gradient."""

import numpy as np
import pytest
import torch

from antigram.model.choices import Codec
from antigram.model.loss.at_loss import at_loss
from antigram.model.loss.codecs import Stack, encode_rows
from antigram.model.loss.compare import compare

EPS = float(np.finfo(np.float32).eps)
# Channels, and frames and bins of the maps: more positions than channels, and fewer.
SHAPES = [(6, 5, 7), (40, 3, 4)]
EXACT = ("packed", "factor", "lowrank")
CASES = [
    *((codec, "gram", similarity) for codec in EXACT for similarity in ("cos2", "mse-sigmoid")),
    *((codec, "pairwise", similarity) for codec in EXACT for similarity in ("cos2", "cka")),
    *(("map", "mean", similarity) for similarity in ("cos2", "mse-sigmoid")),
    *(("map", "max", similarity) for similarity in ("cos2", "mse-sigmoid")),
]


def drawn(shape, rng, scale=1.0):
    return torch.from_numpy(rng.gamma(0.3, scale, (4, *shape)).astype(np.float32))


@pytest.mark.parametrize("weights", [(0.5, 0.5, 0.5), (0.5, -2.0, 0.0)], ids=["equal", "unequal"])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize(("codec", "aggregation", "similarity"), CASES)
def test_value_and_gradient_are_those_of_each_teacher_alone(
    codec, aggregation, similarity, shape, layout, weights, rng
):
    scale = 0.05 if similarity == "mse-sigmoid" else 1.0  # of larger maps the sigmoid is flat
    student, *teachers = (drawn(shape, rng, scale) for _ in range(1 + len(weights)))
    student[1], teachers[0][2] = 0, 0  # silence on either side
    rows = [encode_rows(t, aggregation, torch.float16, codec, rank=3) for t in teachers]
    leaf, alone = (student.clone(memory_format=layout).requires_grad_() for _ in range(2))
    total, means = compare(leaf, [Stack.of(rows)], weights, aggregation, similarity)
    (3 * total).backward()
    want = [at_loss(alone, each, aggregation, similarity).mean() for each in rows]
    torch.stack([3 * w * each for w, each in zip(weights, want, strict=True)]).sum().backward()
    # Seen: 1.5e-7 of the values, 4e-7 of the gradient.
    torch.testing.assert_close(means, torch.stack(want).detach(), rtol=8 * EPS, atol=EPS)
    assert (leaf.grad - alone.grad).norm() <= 16 * EPS * alone.grad.norm()
    assert alone.grad.norm() > 0
    assert not leaf.grad[1].any() or similarity == "mse-sigmoid"


def test_stacks_of_several_forms_are_compared_together(rng):
    maps, teachers = drawn((12, 3, 3), rng), [drawn((12, 3, 3), rng) for _ in range(4)]
    forms: list[tuple[Codec, torch.dtype]] = [
        ("factor", torch.float16),
        ("packed", torch.float32),
        ("lowrank", torch.float16),
        ("packed", torch.float16),
    ]
    rows = [
        encode_rows(maps, "gram", dtype, codec, rank=2)
        for maps, (codec, dtype) in zip(teachers, forms, strict=True)
    ]
    for chosen in ([0, 2], [0, 1, 2, 3]):  # without Grams, and with them
        leaf, alone = (maps.clone().requires_grad_() for _ in range(2))
        stacks = [Stack.of([rows[i]]) for i in chosen]
        total, means = compare(leaf, stacks, [1.0 + i for i in chosen], "gram")
        total.backward()
        want = [at_loss(alone, rows[i], "gram").mean() for i in chosen]
        torch.stack(
            [(1.0 + i) * each for i, each in zip(chosen, want, strict=True)]
        ).sum().backward()
        torch.testing.assert_close(means, torch.stack(want).detach(), rtol=8 * EPS, atol=0)
        assert (leaf.grad - alone.grad).norm() <= 16 * EPS * alone.grad.norm()


def test_a_gram_whose_square_is_beyond_float32_makes_the_loss_not_a_number(rng):
    maps = drawn((6, 5, 7), rng)
    stack = Stack.of([encode_rows(maps.flip(1), "gram", torch.float32)])
    total, _ = compare(maps * 2.0**33, [stack], [1.0], "gram")
    assert total.isnan()
    assert not compare(maps * 2.0**20, [stack], [1.0], "gram")[0].isnan()
