"""What a cache would take and when it would pay off, before it is computed."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import torch

from cache.plan import LayerPlan, frozen_net
from model.checkpoint import Frozen
from pipeline.split import SPLITS
from pipeline.store import FeatureStore

__all__ = ["estimate"]

_BATCHES = 3  # timed, after one that is not


def estimate(
    plans: Mapping[int, LayerPlan],
    store: FeatureStore,
    frozen: Frozen,
    *,
    batch_clips: int,
    device: torch.device,
) -> dict[str, Any]:
    """Size, time and break-even of each layer, from a few timed batches of noise.

    Online training runs the net on every clip of training and validation in each epoch; a cache
    runs it once on every clip. It pays off after as many epochs as the one takes of the other.

    Returns:
        ``layers``: layer -> codec, dtype, channels, positions, bytes_per_clip, bytes, seconds,
        break_even_epochs; and bytes and seconds of all layers in one pass.
    """
    seconds = _seconds_per_clip(plans, store.shape, frozen, batch_clips, device)
    counts = {split: int((store.split == index).sum()) for index, split in enumerate(SPLITS)}
    per_epoch = counts["train"] + counts["validation"]
    views = next(iter(plans.values())).views
    rows = len(store) + (views - 1) * counts["train"]  # others are not augmented
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
            "break_even_epochs": rows / per_epoch if per_epoch else None,
        }
    known = [layer["bytes"] for layer in layers.values() if layer["bytes"] is not None]
    return {
        "clips": len(store),
        "bytes": sum(known),
        "seconds": seconds[max(plans)] * rows,
        "online_seconds_per_epoch": seconds[max(plans)] * per_epoch,
        "layers": layers,
    }


@torch.no_grad()
def _seconds_per_clip(
    plans: Mapping[int, LayerPlan],
    shape: tuple[int, int],
    frozen: Frozen,
    batch_clips: int,
    device: torch.device,
) -> dict[int, float]:
    """Seconds that the net takes for a clip up to each layer, the fastest of a few batches."""
    key = next(iter(plans.values())).key
    net = frozen_net(frozen, key, device)
    x = torch.randn(batch_clips, 1, *shape, device=device)
    best = dict.fromkeys(plans, float("inf"))
    begun = 0.0

    def on_tap(layer: int, maps: torch.Tensor) -> None:
        del maps
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best[layer] = min(best[layer], time.perf_counter() - begun)

    for number in range(_BATCHES + 1):
        if number == 1:
            best = dict.fromkeys(plans, float("inf"))
        begun = time.perf_counter()
        net.run_features(x, list(plans), key.tap, on_tap, stop=True)
    return {layer: seconds / batch_clips for layer, seconds in best.items()}
