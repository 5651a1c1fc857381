"""Explain what a checkpoint predicts for a recording: Grad-CAM over its spectrogram."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from antigram.model.choices import Layer
from antigram.model.nets.arch import Arch
from antigram.model.nets.grad_cam import grad_cam, on_input
from antigram.model.nets.networks import layer_shapes, main_layers
from antigram.model.training.checkpoint import Checkpoint
from antigram.model.training.decide import (
    average,
    finite_rows,
    log_probabilities,
    segments_at_once,
)
from antigram.model.training.precision import set_precision
from antigram.model.training.predict import Prediction, network_input
from antigram.pipeline.errors import InputError
from antigram.pipeline.features.recipe import Recipe
from antigram.pipeline.features.spectra import amplitudes, band_hz
from antigram.pipeline.table import plain_text

__all__ = ["MAX_S", "Explanation", "explain"]

MAX_S = 120.0  # of a recording: a longer one would not be legible in one picture
_GRADIENTS = 8  # segments at once, relative to a prediction: here all maps are kept


class Peak(NamedTuple):
    """Where a map is largest: the centre of the receptive field of that position.

    Attributes:
        seconds: from the start of the recording.
        hz: frequency in Hz.
        band: index of the frequency bin or mel band; it may lie between two.
    """

    seconds: float
    hz: float
    band: float


@dataclass(frozen=True, slots=True, eq=False)
class Explanation:
    """Grad-CAM of one recording.

    Attributes:
        prediction: what the network predicts for the recording.
        label: the class that is explained.
        layer: the layer whose maps are explained.
        magnitudes: ``(frame, freq)`` float32 magnitudes of the STFT or of the mel bands that the
            network was given; where segments overlap, their mean.
        heat: ``(frame, freq)`` float32, not negative: how much each place speaks for ``label``; of
            overlapping segments, the mean.
        maximum: largest value of the layer's maps, over all segments.
        peak: where it is; None if the maps are zero everywhere.
        frame_s: seconds between two frames.
        bin_hz: Hz between two frequency bins; None for mel bands.
    """

    prediction: Prediction
    label: str
    layer: Layer
    magnitudes: NDArray[np.float32]
    heat: NDArray[np.float32]
    maximum: float
    peak: Peak | None
    frame_s: float
    bin_hz: float | None

    @property
    def probability(self) -> float:
        """Probability of the class that is explained."""
        return self.prediction.probabilities[self.label]

    def to_json(self) -> dict[str, Any]:
        """Return fields of ``explain --json``."""
        peak_s, peak_hz, _ = self.peak or (None, None, None)
        return {
            "layer": self.layer,
            "predicted": self.prediction.label,
            "class": self.label,
            "probability": self.probability,
            "maximum": self.maximum,
            "maximum_at": {"seconds": peak_s, "hz": peak_hz},
        }


def explain(
    checkpoint: Checkpoint,
    path: Path,
    *,
    layer: Layer | None = None,
    label: str | None = None,
    device: torch.device,
) -> Explanation:
    """Compute Grad-CAM for a recording, with the preprocessing that the network was trained on.

    The recording is divided into segments as `predict` does. All segments are explained for the
    same class.

    Args:
        checkpoint: the network, with its classes and preprocessing.
        path: audio file, of at most `MAX_S` seconds.
        layer: number of a VGG's convolution layer, or name of a module; default: the deepest whose
            maps have frames and frequencies.
        label: class to explain; default: the one predicted for the recording.
        device: device that the network runs on.

    Raises:
        InputError: the network has no such layer or class, the file cannot be used, or the
            network's outputs are not finite.

    References:
        Selvaraju and others (2017); figure 5 of Guizzo, Weyde and Tarroni (2021).
    """
    arch, shape = checkpoint.arch, checkpoint.recipe.shape
    number = _deepest(arch, shape) if layer is None else arch.check_layers([layer])[0]
    if label is not None and label not in checkpoint.classes:
        raise InputError(
            f"class {label!r} is not known: the checkpoint tells {checkpoint.task} apart, "
            f"{', '.join(checkpoint.classes[:12])}"
        )
    starts_s, rows = network_input(checkpoint, path, max_s=MAX_S)
    set_precision("32")
    net = checkpoint.net().to(device).requires_grad_(requires_grad=False)
    at_once = segments_at_once(checkpoint.recipe.shape[0])
    with torch.no_grad():
        prediction = _prediction(checkpoint, path, [net(x) for x in _parts(rows, at_once, device)])
    label = label or prediction.label
    recipe = checkpoint.recipe
    target, stride = checkpoint.classes.index(label), net.strides(number, recipe.shape)
    parts = _parts(rows, max(1, at_once // _GRADIENTS), device)
    maps = torch.cat([grad_cam(net, x, number, target)[0] for x in parts])
    heat = on_input(maps, recipe.shape, stride).cpu().numpy()
    firsts = [round(start_s * recipe.sample_rate / recipe.hop) for start_s in starts_s]
    values = rows * np.float32(checkpoint.std) + np.float32(checkpoint.mean)
    return Explanation(
        prediction,
        label,
        number,
        _joined(amplitudes(values, recipe), firsts).clip(0),
        _joined(heat, firsts),
        float(maps.max()),
        _peak(maps.cpu().numpy(), stride, starts_s, recipe),
        recipe.hop / recipe.sample_rate,
        None if recipe.is_mel else recipe.sample_rate / recipe.n_fft,
    )


def _deepest(arch: Arch, shape: tuple[int, int]) -> Layer:
    """Return the last main layer whose maps have frames and frequencies."""
    planar = {each.layer for each in layer_shapes(arch, shape) if each.size[1] > 1}
    layers = [layer for layer in main_layers(arch, shape) if layer in planar]
    if not layers:
        raise InputError(
            f"`arch` {arch.name}: no layer has maps of frames and frequencies: nothing can be drawn"
        )
    return layers[-1]


def _peak(
    maps: NDArray[np.float32], stride: tuple[int, int], starts_s: list[float], recipe: Recipe
) -> Peak | None:
    """Return where a layer's maps are largest; None if all are zero."""
    if not maps.any():
        return None
    segment, *position = np.unravel_index(int(maps.argmax()), maps.shape)
    frame, freq = (
        (float(index) + 0.5) * step - 0.5 for index, step in zip(position, stride, strict=True)
    )
    seconds = starts_s[int(segment)] + frame * recipe.hop / recipe.sample_rate
    return Peak(seconds, band_hz(recipe, freq), freq)


def _parts(rows: NDArray[np.float32], at_once: int, device: torch.device) -> list[Tensor]:
    """Return segments as batches ``(segment, 1, frame, freq)``."""
    x = torch.from_numpy(rows)[:, None].to(device)
    return [x[first : first + at_once] for first in range(0, len(x), at_once)]


def _prediction(checkpoint: Checkpoint, path: Path, logits: list[Tensor]) -> Prediction:
    outputs = torch.cat(logits)
    name = plain_text(path)
    if not finite_rows(outputs, outputs).all():
        raise InputError(
            f"{name}: the network's outputs are not finite: nothing can be explained. Train the "
            "network again, with a lower `lr`."
        )
    return Prediction(name, checkpoint.classes, average(log_probabilities(outputs)))


def _joined(segments: NDArray[np.float32], firsts: list[int]) -> NDArray[np.float32]:
    """Join segments ``(segment, frame, freq)`` at their first frames; overlaps are averaged."""
    length = segments.shape[1]
    total = np.zeros((firsts[-1] + length, segments.shape[2]), np.float32)
    count = np.zeros((len(total), 1), np.float32)
    for first, segment in zip(firsts, segments, strict=True):
        total[first : first + length] += segment
        count[first : first + length] += 1
    total /= np.maximum(count, 1)
    return total
