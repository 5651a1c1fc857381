"""Find the rank of a low-rank layer, and the error that it causes, on a few segments."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from antigram.cache.plan import LayerPlan, run_taps, teacher_net
from antigram.model.loss.codecs import Stack, encode_rows
from antigram.model.loss.gram import flat, self_product
from antigram.model.loss.pairwise import compared
from antigram.model.loss.student_maps import StudentMaps
from antigram.model.training.any_teacher import AnyTeacher
from antigram.pipeline.draw import draw
from antigram.pipeline.features.store import FeatureStore

__all__ = ["PILOT_CLIPS", "find_rank", "rank_for"]

PILOT_CLIPS = 256
_ERROR_CLIPS = 64


def find_rank(
    plan: LayerPlan,
    store: FeatureStore,
    teacher: AnyTeacher,
    batch_clips: int,
    device: torch.device,
) -> LayerPlan:
    """Find the rank of a low-rank layer, and the error that it causes on a sample.

    The rank is the least at which every segment of the pilot keeps the requested energy. The
    segments of the pilot are drawn by their row in the store, so they are the same in every build.

    Args:
        plan: plan of a ``lowrank`` layer; its rank is kept if it has one.
        store: features.
        teacher: network that computes the rows.
        batch_clips: segments in a batch.
        device: device that the teacher runs on.

    Returns:
        The plan with its rank, and with the number of segments and the largest error of the cosine
        as ``pilot``.
    """
    order = sorted(range(len(store)), key=lambda row: draw(0, "pilot", str(row)))
    x = teacher.read(store, sorted(order[:PILOT_CLIPS]))
    net = teacher_net(teacher, plan.key, device)
    rank = plan.rank
    if rank is None:
        ranks: list[int] = []
        energy = plan.key.energy or 1.0
        run_taps(
            net,
            x,
            [plan],
            batch_clips,
            device,
            lambda p, maps: ranks.append(rank_for(_compared(p, maps), energy)),
        )
        rank = max(ranks)
    errors: list[float] = []
    plan = replace(plan, rank=rank)
    sample = x[: min(_ERROR_CLIPS, len(x))]
    run_taps(
        net, sample, [plan], batch_clips, device, lambda p, maps: errors.append(_error(p, maps))
    )
    return replace(plan, pilot={"clips": len(x), "rank": rank, "cosine_error": max(errors)})


def _compared(plan: LayerPlan, maps: Tensor) -> Tensor:
    return compared(maps, plan.key.aggregation, plan.key.grid)


def rank_for(maps: Tensor, energy: float) -> int:
    """Return the least rank at which every segment's Gram keeps a share of its squared norm.

    Args:
        maps: ``(batch, channel, frame, freq)``, or the result of `pairwise_maps`.
        energy: the share, in (0, 1].
    """
    with torch.autocast(maps.device.type, enabled=False):
        values = flat(maps) if maps.ndim == 4 else maps
        product = self_product(values if values.shape[1] <= values.shape[2] else values.mT)
    scale = product.flatten(1).norm(dim=1).clamp_min(1e-30)[:, None, None]
    squares = torch.linalg.eigvalsh(product / scale).clamp_min(0).double().square().flip(1)
    total = squares.sum(1, keepdim=True)
    too_small = (squares.cumsum(1) < energy * total * (1 - 1e-12)).sum(1)
    return int(min(int(too_small.max()) + 1, squares.shape[1]))


def _error(plan: LayerPlan, maps: Tensor) -> float:
    """Return the largest error that the rank causes in cosines between segments of the batch."""
    key = plan.key
    dtype = getattr(torch, key.dtype)
    cosines = []
    with torch.autocast(maps.device.type, enabled=False):
        # Each segment is compared with the one before it.
        neighbours = StudentMaps(_compared(plan, maps.roll(1, 0)))
        for rows in (
            encode_rows(maps, key.aggregation, dtype, "lowrank", plan.rank, key.grid),
            encode_rows(maps, key.aggregation, torch.float32, grid=key.grid),
        ):
            inner = neighbours.inner(Stack.of([rows]))[:, 0].double()
            divisor = neighbours.norm.double() * rows.row_norm.double()
            cosines.append(inner / torch.where(divisor > 0, divisor, 1.0))
    return float((cosines[0] - cosines[1]).abs().max())
