"""Estimate the size and time of a cache, and when it pays off, before it is built."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import torch

from antigram.cache.plan import LayerPlan, teacher_net
from antigram.model.choices import Layer
from antigram.model.training.any_teacher import AnyTeacher
from antigram.pipeline.features.split import SPLITS
from antigram.pipeline.features.store import FeatureStore

__all__ = ["break_even_epochs", "estimate"]

_BATCHES = 3  # number of timed batches, after one to warm up


def estimate(
    plans: Mapping[Layer, LayerPlan],
    store: FeatureStore,
    teacher: AnyTeacher,
    *,
    batch_clips: int,
    device: torch.device,
) -> dict[str, Any]:
    """Estimate size, time and break-even of each layer, from a few timed batches of noise.

    Online training runs the teacher on every training and validation segment in each epoch;
    building a cache runs it once on every segment of the store. The cache pays off after the number
    of epochs whose teacher passes take as long as building the cache.

    Args:
        plans: layers of the cache, by number.
        store: features.
        teacher: network that computes the rows.
        batch_clips: segments in a batch.
        device: device that the teacher runs on.

    Returns:
        ``clips``, ``bytes`` and ``seconds`` of all layers in one pass, ``online_seconds_per_epoch``
        and ``layers``: for each layer codec, dtype, channels, positions, bytes_per_clip, bytes,
        seconds and break_even_epochs. Bytes are None if the rank is not yet known.
    """
    seconds = _seconds_per_clip(plans, store, teacher, batch_clips, device)
    rows, per_epoch = _rows(store, next(iter(plans.values())))
    layers = {}
    for number, plan in plans.items():
        layers[str(number)] = {
            "codec": plan.key.codec,
            "dtype": plan.key.dtype,
            "channels": plan.channels,
            "positions": plan.positions,
            "bytes_per_clip": None if plan.row[-1] == 0 else plan.bytes_per_clip,
            "bytes": None if plan.row[-1] == 0 else plan.bytes_per_clip * len(store),
            "seconds": seconds[number] * rows,
            "break_even_epochs": break_even_epochs(store, plan),
        }
    known = [layer["bytes"] for layer in layers.values() if layer["bytes"] is not None]
    return {
        "clips": len(store),
        "bytes": sum(known),
        "seconds": max(seconds.values()) * rows,
        "online_seconds_per_epoch": max(seconds.values()) * per_epoch,
        "layers": layers,
    }


def break_even_epochs(store: FeatureStore, plan: LayerPlan) -> float | None:
    """Return the epochs after which a cache has cost less than a live teacher; None if never."""
    rows, per_epoch = _rows(store, plan)
    return rows / per_epoch if per_epoch else None


def _rows(store: FeatureStore, plan: LayerPlan) -> tuple[int, int]:
    """Count the rows that the teacher computes for a cache, and in an epoch of online training."""
    counts = {split: int((store.split == index).sum()) for index, split in enumerate(SPLITS)}
    augmented = (plan.views - 1) * counts["train"]  # only training segments are augmented
    return len(store) + augmented, counts["train"] + counts["validation"]


@torch.no_grad()
def _seconds_per_clip(
    plans: Mapping[Layer, LayerPlan],
    store: FeatureStore,
    teacher: AnyTeacher,
    batch_clips: int,
    device: torch.device,
) -> dict[Layer, float]:
    """Return the teacher's seconds for a segment up to each layer, from the fastest batch."""
    key = next(iter(plans.values())).key
    net = teacher_net(teacher, key, device)
    x = torch.randn_like(teacher.zeros(store, batch_clips)).to(device)
    best = dict.fromkeys(plans, float("inf"))
    start = 0.0

    def on_tap(layer: Layer, maps: torch.Tensor) -> None:
        del maps
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best[layer] = min(best[layer], time.perf_counter() - start)

    for number in range(_BATCHES + 1):
        if number == 1:
            best = dict.fromkeys(plans, float("inf"))
        start = time.perf_counter()
        net.run_features(x, list(plans), key.tap, on_tap, stop=True)
    return {layer: seconds / batch_clips for layer, seconds in best.items()}
