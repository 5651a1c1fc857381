"""Run networks over segments once, and keep mean and standard deviation of each channel."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from antigram.model.choices import Layer
from antigram.model.nets.arch import Arch
from antigram.model.nets.backbone import Backbone
from antigram.model.nets.networks import build_net
from antigram.model.training.batches import Batches
from antigram.model.training.checkpoint import Checkpoint
from antigram.model.training.decide import segments_at_once
from antigram.model.training.precision import set_precision
from antigram.pipeline.callbacks import OnProgress
from antigram.pipeline.draw import draw
from antigram.pipeline.errors import InputError, StoredDataError
from antigram.pipeline.features.store import FeatureStore

__all__ = ["Representations", "represent", "trained", "untrained"]

Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Representations:
    """Representations of some segments.

    Attributes:
        of_layers: name of a network -> layer -> ``(segment, 2 * channel)`` means and standard
            deviations over the positions of each channel; of a numbered layer after its ReLU.
        raw_input: ``(segment, 2 * freq)`` means and standard deviations over the frames of each
            frequency bin of the stored features.
    """

    of_layers: dict[str, dict[Layer, Floats]]
    raw_input: Floats


def trained(checkpoint: Checkpoint) -> Backbone:
    """Return a trained network; a VGG without its classifier."""
    return checkpoint.teacher().net()


def untrained(
    arch: Arch, seed: int, purpose: str = "untrained", shape: tuple[int, int] = (0, 0)
) -> Backbone:
    """Return a network with initial weights, drawn from a seed; a VGG without its classifier.

    The state of torch's global random generator is neither used nor changed.

    Args:
        arch: name and width of the network.
        seed: seed of the weights.
        purpose: networks of different purposes are drawn independently.
        shape: ``(frame, freq)`` of a segment.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(draw(seed, "probe", purpose)[0])
        net = build_net(arch, 0 if arch.numbered else 2, shape)
    return net.to(memory_format=torch.channels_last).eval()


@torch.no_grad()
def represent(
    nets: Mapping[str, Backbone],
    layers: Collection[Layer],
    store: FeatureStore,
    rows: NDArray[np.int64],
    device: torch.device,
    scales: Mapping[str, tuple[float, float]],
    on_progress: OnProgress = lambda *_: None,
) -> Representations:
    """Run each network once over the segments, in batches.

    Args:
        nets: networks by name.
        layers: numbers of a VGG's convolution layers, or names of modules.
        store: features.
        rows: ``(segment,)`` indices into the store.
        device: device of the networks.
        scales: by name, factor and shift of the stored features for a network that was trained
            with another mean and standard deviation.
        on_progress: called with the stage, the segments that are done and their number.

    Raises:
        InputError: a network's feature maps are not finite, though the features are.
        StoredDataError: stored features are not finite, or damaged.
    """
    set_precision("32")
    moved = {name: net.to(device) for name, net in nets.items()}
    known: dict[tuple[str, Layer], list[Floats]] = {}
    raw: list[Floats] = []
    batches = Batches(store, store.main_label, None, segments_at_once(store.shape[0]), device)
    done = 0
    for batch in batches.passes(rows):
        if not batch.x.isfinite().all():
            raise StoredDataError(
                f"{store.path}: the stored features of a segment are not finite, wanted numbers. "
                f"Run `antigram verify {store.path}`, or prepare the store again."
            )
        raw.append(_moments(batch.x[:, 0].mT))
        for name, net in moved.items():
            scale, shift = scales.get(name, (1.0, 0.0))

            def keep(layer: Layer, maps: Tensor, name: str = name) -> None:
                known.setdefault((name, layer), []).append(_moments(maps.flatten(2)))

            net.run_features(batch.x * scale + shift, layers, "relu", keep, stop=True)
        done += len(batch.clips)
        on_progress("networks", done, len(rows))
    of_layers = {
        name: {layer: np.concatenate(known[name, layer]) for layer in layers} for name in nets
    }
    for name, of_net in of_layers.items():
        for layer, values in of_net.items():
            if not np.isfinite(values).all():
                raise InputError(
                    f"the feature maps of {name} at layer {layer} are not finite, wanted numbers: "
                    "its weights are too large. Train the network again, with a lower `lr`."
                )
    return Representations(of_layers, np.concatenate(raw))


def _moments(values: Tensor) -> Floats:
    """Return ``(segment, 2 * channel)`` moments of ``(segment, channel, position)`` values."""
    variance, mean = torch.var_mean(values, dim=2, correction=0)
    both: Floats = torch.cat([mean, variance.sqrt()], dim=1).cpu().numpy()
    return both
