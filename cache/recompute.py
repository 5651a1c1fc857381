"""Hold cached rows against the teacher itself, on a few clips drawn at random."""

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
from antigram.model.loss.gram import aggregate, flat
from antigram.model.nets.vgg import Vgg, extractor_digest
from antigram.model.training.checkpoint import Teacher
from antigram.pipeline.audio.augmentation import apply_views
from antigram.pipeline.errors import InputError
from antigram.pipeline.features.store import FeatureStore
from antigram.pipeline.storage.manifest import Problem

__all__ = ["recompute"]

# Rows of another batch size or device differ by rounding; of another net or clip by far more.
_ROUNDING = {"float32": 1e-4, "float16": 2e-3}


def recompute(
    path: Path, store: FeatureStore, teacher: Teacher, clips: int, device: torch.device
) -> Iterator[Problem]:
    """Run the teacher again on random clips and compare with what is cached.

    Args:
        path: the cache.
        store: the features it was made from.
        teacher: the net it was made with.
        clips: how many to draw.
        device: where the net runs.

    Raises:
        InputError: the cache was made from another store or net.
    """
    drawn = secrets.SystemRandom().sample(range(len(store)), min(clips, len(store)))
    rows = np.array(sorted(drawn))
    clean = np.empty((len(rows), *store.shape), np.float32)
    store.features.gather(rows, clean)
    with torch.device("meta"):
        shape = Vgg(teacher.arch, 0)
    for number in layers_of(path):
        layer = CacheLayer(path, number)
        key = layer.key
        digest = extractor_digest(teacher.state, shape, number, key.tap)
        if key.features != store.fingerprint or key.extractor != digest:
            what = "store" if key.features != store.fingerprint else "teacher"
            raise InputError(
                f"{path}: layer {number} was made from another {what}; name the one it was made "
                "from with `data` and `ckpt`"
            )
        if key.control is not None:
            yield from _of_mean_row(layer, store, teacher, device)
            continue
        maps: list[Tensor] = []

        def keep(_: LayerPlan, found: Tensor, to: list[Tensor] = maps) -> None:
            to.append(found.float().cpu())

        view = secrets.randbelow(layer.views)
        x = clean.copy()
        if layer.params is not None:
            apply_views(x, layer.params[rows, view], store.silence)
        plan = LayerPlan(key, layer.channels, layer.positions)
        net = teacher_net(teacher, key, device)
        run_taps(net, x, [plan], 16, device, keep)
        stored = LayerRows(layer).read(rows, view)
        for clip, error, allowed in _errors(torch.cat(maps), stored, layer):
            if not error <= allowed:
                yield Problem(
                    layer.folder,
                    f"clip {store.clip_ids[int(rows[clip])]}: differs from the teacher's by "
                    f"{error:.2e} of its norm, {allowed:.0e} allowed",
                )


def _of_mean_row(
    layer: CacheLayer, store: FeatureStore, teacher: Teacher, device: torch.device
) -> Iterator[Problem]:
    """Hold the one row of all segments against the mean over the training split."""
    plan = LayerPlan(layer.key, layer.channels, layer.positions)
    data, norm, _ = mean_rows(store, teacher, [plan], 16, device)[layer.key.layer]
    stored = LayerRows(layer).read(np.arange(len(store)), 0)
    apart = (stored.data.double() - data.double()).norm(dim=1)
    apart = torch.maximum(apart, (stored.norm - norm).abs().double())
    allowed = _ROUNDING[layer.key.dtype]
    if (worst := float(apart.max())) > allowed:
        yield Problem(
            layer.folder,
            f"differs from the mean over the training split by {worst:.2e} of its norm, "
            f"{allowed:.0e} allowed",
        )


def _errors(maps: Tensor, stored: Rows, layer: CacheLayer) -> Iterator[tuple[int, float, float]]:
    """Distance of each row from the exact one, both of norm 1; and what is allowed."""
    allowed = _ROUNDING[layer.key.dtype]
    if layer.key.aggregation == "gram":
        wide = flat(maps).double()
        exact = (wide @ wide.mT).flatten(1)
        found = stored.matrices(layer.channels).double().flatten(1)
    else:
        exact, found = aggregate(maps, layer.key.aggregation).double(), stored.data.double()
    norm = exact.norm(dim=1)
    exact = exact / torch.where(norm > 0, norm, 1.0)[:, None]
    for clip in range(len(exact)):
        error = float((exact[clip] - found[clip]).norm())
        size = float((norm[clip] - stored.norm[clip]).abs() / norm[clip].clamp_min(1e-30))
        row_norm = float(found[clip].norm())
        beside = abs(row_norm - float(stored.row_norm[clip]))
        if stored.energy is not None and norm[clip] > 0:
            # The nearest matrix of a rank is a projection: its inner product with the whole, of
            # norm 1, is its own squared norm, and that is the energy it keeps.
            error = abs(float(exact[clip] @ found[clip]) - row_norm**2)
            beside = max(beside, abs(row_norm**2 - float(stored.energy[clip])))
        yield clip, max(size, beside, error), allowed
