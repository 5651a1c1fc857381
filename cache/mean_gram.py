"""The control ``mean-gram``: one row for all segments, the mean over the training split."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from antigram.cache.plan import LayerPlan, run_taps, teacher_net
from antigram.model.choices import Layer
from antigram.model.loss.codecs import Rows, encode_rows, stored_rows
from antigram.model.loss.gram import exact_norm
from antigram.model.training.any_teacher import AnyTeacher
from antigram.pipeline.features.store import FeatureStore

__all__ = ["mean_rows"]

_SEGMENTS = 256  # segments that are read at once


def mean_rows(
    store: FeatureStore,
    teacher: AnyTeacher,
    plans: Sequence[LayerPlan],
    batch_clips: int,
    device: torch.device,
) -> Mapping[Layer, Rows]:
    """Compute the mean row of the training split at each layer.

    Each row is divided by its norm before the mean is taken, so that loud segments do not dominate.

    Args:
        store: features.
        teacher: network that computes the rows.
        plans: layers, all of codec ``packed`` or ``map``.
        batch_clips: segments in a batch.
        device: device that the teacher runs on.

    Returns:
        By layer, a single row, in host memory.
    """
    net = teacher_net(teacher, plans[0].key, device)
    sums: dict[Layer, Tensor] = {}

    def add(plan: LayerPlan, maps: Tensor) -> None:
        key = plan.key
        rows = encode_rows(maps, key.aggregation, torch.float32, key.codec, grid=key.grid)
        total = rows.data.double().sum(0)
        sums[key.layer] = sums[key.layer] + total if key.layer in sums else total

    training: NDArray[np.int64] = store.rows("train")
    for first in range(0, len(training), _SEGMENTS):
        x = teacher.read(store, training[first : first + _SEGMENTS])
        run_taps(net, x, plans, batch_clips, device, add)
    rows = {}
    for plan in plans:
        mean = (sums[plan.key.layer] / len(training))[None]
        norm, key = exact_norm(mean), plan.key
        values = mean / torch.where(norm > 0, norm, 1.0)[:, None]
        row = stored_rows(key.codec, values, norm, getattr(torch, key.dtype), side=plan.side)
        rows[key.layer] = replace(
            row,
            data=row.data.cpu(),
            norm=row.norm.cpu(),
            row_norm=row.row_norm.cpu(),
            scale=None if row.scale is None else row.scale.cpu(),
        )
    return rows
