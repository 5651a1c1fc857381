"""Compare cached rows with recomputed rows, on a few random segments."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from antigram.cache.grams import LayerRows
from antigram.cache.layer import CacheLayer, layers_of
from antigram.cache.mean_gram import mean_rows
from antigram.cache.plan import LayerPlan, run_taps, teacher_net
from antigram.model.loss.codecs import Rows
from antigram.model.loss.pairwise import compared
from antigram.model.training.any_teacher import AnyTeacher
from antigram.pipeline.audio.augmentation import apply_views
from antigram.pipeline.errors import InputError
from antigram.pipeline.features.store import FeatureStore
from antigram.pipeline.storage.manifest import Problem

__all__ = ["recompute"]

# Largest error allowed. Another batch size or device changes rows by rounding only; rows of another
# network or segment differ by far more. Int8 rows of norm 1 are off by about trace / 440, the trace
# of a Gram of norm 1 being its effective rank's square root.
_ROUNDING = {"float32": 1e-4, "float16": 2e-3, "int8": 3e-2}


def recompute(
    path: Path, store: FeatureStore, teacher: AnyTeacher, clips: int, device: torch.device
) -> Iterator[Problem]:
    """Run the teacher again on random segments, and compare its rows with the cached rows.

    Args:
        path: the cache.
        store: features that the cache was built from.
        teacher: network that the cache was built with.
        clips: number of segments.
        device: device that the teacher runs on.

    Yields:
        A problem for each segment and layer whose rows differ by more than rounding.

    Raises:
        InputError: the cache was built from another store or teacher.
    """
    drawn = secrets.SystemRandom().sample(range(len(store)), min(clips, len(store)))
    rows = np.array(sorted(drawn))
    clean = teacher.read(store, rows)
    for number in layers_of(path):
        layer = CacheLayer(path, number)
        key = layer.key
        digest = teacher.digest(number, key.tap)
        if key.features != store.fingerprint or key.extractor != digest:
            other = "store" if key.features != store.fingerprint else "teacher"
            raise InputError(
                f"{path}: layer {number} was made from another {other}; name the one it was made "
                "from with `data` and `ckpt` or `teacher`"
            )
        if key.control is not None:
            yield from _of_mean_row(layer, store, teacher, device)
            continue
        maps: list[Tensor] = []

        def collect(_: LayerPlan, tapped: Tensor, to: list[Tensor] = maps) -> None:
            to.append(tapped.float().cpu())

        view = secrets.randbelow(layer.views)
        x = clean.copy()
        if layer.params is not None:
            apply_views(x, layer.params[rows, view], store.levels)
        plan = LayerPlan(key, layer.channels, layer.positions)
        net = teacher_net(teacher, key, device)
        run_taps(net, x, [plan], 16, device, collect)
        stored = LayerRows(layer).read(rows, view)
        for clip, error, allowed in _errors(torch.cat(maps), stored, layer):
            if not error <= allowed:
                yield Problem(
                    layer.folder,
                    f"clip {store.clip_ids[int(rows[clip])]}: differs from the teacher's by "
                    f"{error:.2e} of its norm, {allowed:.0e} allowed",
                )


def _of_mean_row(
    layer: CacheLayer, store: FeatureStore, teacher: AnyTeacher, device: torch.device
) -> Iterator[Problem]:
    """Compare the one row that stands for all segments with the mean over the training split."""
    plan = LayerPlan(layer.key, layer.channels, layer.positions)
    mean = mean_rows(store, teacher, [plan], 16, device)[layer.key.layer].widened()
    stored = LayerRows(layer).read(np.arange(len(store)), 0)
    apart = (stored.data.double() - mean.data.double()).norm(dim=1)
    apart = torch.maximum(apart, (stored.norm - mean.norm).abs().double())
    allowed = _ROUNDING[layer.key.dtype]
    if (worst := float(apart.max())) > allowed:
        yield Problem(
            layer.folder,
            f"differs from the mean over the training split by {worst:.2e} of its norm, "
            f"{allowed:.0e} allowed",
        )


def _errors(maps: Tensor, stored: Rows, layer: CacheLayer) -> Iterator[tuple[int, float, float]]:
    """Compare stored rows with rows that are computed from maps and divided by their norm.

    Yields:
        Index of a segment in the batch, the largest error of its row, norm and energy, and the
        error that is allowed.
    """
    allowed = _ROUNDING[layer.key.dtype]
    values = compared(maps, layer.key.aggregation, layer.key.grid).double()
    if layer.key.codec == "map":
        exact, cached = values, stored.data.double()
    else:
        values = values.flatten(2)
        exact = (values @ values.mT).flatten(1)
        cached = stored.matrices(layer.side).double().flatten(1)
    norm = exact.norm(dim=1)
    exact = exact / torch.where(norm > 0, norm, 1.0)[:, None]
    for clip in range(len(exact)):
        row_error = float((exact[clip] - cached[clip]).norm())
        norm_error = float((norm[clip] - stored.norm[clip]).abs() / norm[clip].clamp_min(1e-30))
        row_norm = float(cached[clip].norm())
        row_norm_error = abs(row_norm - float(stored.row_norm[clip]))
        energy_error = 0.0
        if stored.energy is not None and norm[clip] > 0:
            # The nearest matrix of a rank is a projection of the exact one, which has norm 1. So
            # their inner product is its squared norm, and equals the energy that it keeps.
            row_error = abs(float(exact[clip] @ cached[clip]) - row_norm**2)
            energy_error = abs(row_norm**2 - float(stored.energy[clip]))
        yield clip, max(norm_error, row_norm_error, energy_error, row_error), allowed
