"""Checkpoints: their content and its validation. `model.training.tensors` has their files."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from antigram.model.choices import Layer, Tap
from antigram.model.nets.arch import Arch, archs_by_layers
from antigram.model.nets.backbone import Backbone
from antigram.model.nets.networks import (
    body_state,
    build_net,
    empty_net,
    extractor_digest,
    map_shape,
)
from antigram.model.nets.vgg import conv_state
from antigram.model.training.tensors import FORMAT, load_tensors, save_tensors, write_tensors
from antigram.pipeline.errors import InputError, StoredDataError
from antigram.pipeline.features.recipe import VERSION as RECIPE_VERSION
from antigram.pipeline.features.recipe import Recipe
from antigram.pipeline.features.store import FeatureStore

__all__ = [
    "SHUFFLED",
    "Checkpoint",
    "Teacher",
    "load_checkpoint",
    "load_tensors",
    "open_teacher",
    "save_tensors",
    "write_tensors",
]

VERSION = 1
SHUFFLED = "shuffled"  # `labels` in the provenance of a control
# Limits of a standard deviation, so that its reciprocal is finite in float32, too.
_LEAST, _MOST = 1e-30, 1e30
_MOST_FLOAT = torch.finfo(torch.float32).max
_OURS = (torch.float32,)
_TEACHERS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """A trained network with everything that is needed to apply it to audio.

    Attributes:
        arch: name and width of the network.
        task: label that the network was trained to predict.
        classes: names of the outputs, in their order.
        state_dict: weights, by torchvision's names.
        recipe: preprocessing of the network's input.
        mean: mean of the training split, which is subtracted from the input.
        std: standard deviation of the training split, by which the input is divided.
        provenance: run, mode and versions, for display, and ``labels``, which is `SHUFFLED` if the
            network was trained on shuffled labels. No number depends on them.
        scores: accuracy, chance, majority and number of segments, by split; empty in checkpoints
            of versions that did not store scores.
    """

    arch: Arch
    task: str
    classes: list[str]
    state_dict: dict[str, Tensor]
    recipe: Recipe
    mean: float
    std: float
    provenance: dict[str, Any]
    scores: dict[str, dict[str, Any]] = field(default_factory=dict)

    def to_plain(self) -> dict[str, Any]:
        """Return the content of the checkpoint's file, as tensors and plain types."""
        return {
            "format": FORMAT,
            "format_version": VERSION,
            "arch": self.arch.to_json(),
            "task": self.task,
            "classes": self.classes,
            "state_dict": self.state_dict,
            "recipe": self.recipe.to_json(),
            "mean": self.mean,
            "std": self.std,
            "provenance": self.provenance,
            "scores": self.scores,
        }

    def net(self) -> Backbone:
        """Build the network with its weights, in eval mode."""
        with torch.random.fork_rng(devices=[]):
            net = build_net(self.arch, len(self.classes), self.recipe.shape)
        net.load_state_dict(self.state_dict)
        return net.eval()

    def teacher(self, note: str = "") -> Teacher:
        """Return the network as a `Teacher`.

        Args:
            note: see `Teacher`.
        """
        numbered = self.arch.numbered
        return Teacher(
            self.arch,
            conv_state(self.state_dict) if numbered else dict(self.state_dict),
            note,
            self.scores,
            self.task,
            self.recipe,
            classes=0 if numbered else len(self.classes),
            shape=self.recipe.shape,
        )


@dataclass(frozen=True, slots=True)
class Teacher:
    """A trained network whose maps others are compared with.

    Attributes:
        arch: name and width of the network.
        state: weights by torchvision's names, floats in float32: of a VGG those of ``features``, of
            other networks all.
        note: says that the network is a control, and how weights were converted on reading; empty
            if neither is the case.
        scores: as in `Checkpoint`; empty for a control, which is not meant to have learned.
        task: label that the network was trained to predict; empty if it is unknown, or if the
            network was trained on shuffled labels or not at all.
        recipe: preprocessing of the audio that it was trained on; None if it is unknown.
        classes: number of outputs; 0 for a VGG, which is built without its classifier.
        shape: ``(frame, freq)`` of the segments that it was built for; ``(0, 0)`` if it is unknown.
    """

    arch: Arch
    state: dict[str, Tensor]
    note: str
    scores: dict[str, dict[str, Any]] = field(default_factory=dict)
    task: str = ""
    recipe: Recipe | None = None
    classes: int = 0
    shape: tuple[int, int] = (0, 0)

    def net(self) -> Backbone:
        """Build the network with its weights, in eval mode; a VGG without its classifier.

        The state of torch's global random generator is neither used nor changed.
        """
        if self.arch.numbered:
            net = self.empty()
            net.load_state_dict(self.state, assign=True)
        else:  # has buffers that are in no state dict
            with torch.random.fork_rng(devices=[]):
                net = build_net(self.arch, self.classes, self.shape)
            net.load_state_dict(self.state)
        return net.to(memory_format=torch.channels_last).eval()

    def empty(self) -> Backbone:
        """Build the network without weights."""
        return empty_net(self.arch, self.classes, self.shape)

    def digest(self, layer: Layer, tap: Tap) -> str:
        """Return the SHA-256 of the weights up to a layer: see `extractor_digest`."""
        return extractor_digest(self.state, self.empty(), layer, tap)

    def map_shape(self, layer: Layer, tap: Tap, store: FeatureStore) -> tuple[int, int, int]:
        """Return channels, frames and frequencies of a layer's maps: see `map_shape`."""
        return map_shape(self.arch, layer, tap, store.shape)

    def read(
        self, store: FeatureStore, segments: slice | Sequence[int] | NDArray[np.int64]
    ) -> NDArray[np.float32]:
        """Return the features of some segments: see `FeatureStore.features_of`."""
        return store.features_of(segments)

    def zeros(self, store: FeatureStore, count: int) -> Tensor:
        """Return silence for some segments, as the network takes it."""
        return torch.zeros(count, 1, *store.shape)

    def body(self) -> dict[str, Tensor]:
        """Return the weights of all but the classifier."""
        if self.arch.numbered:
            return self.state
        return body_state(self.arch, self.state, self.classes, self.shape)


def load_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint that antigram wrote.

    Raises:
        InputError: the file is missing, or is not a complete checkpoint of antigram.
        StoredDataError: the file is damaged, or was written by a newer version.
    """
    content = load_tensors(path)
    if content.get("format") != FORMAT:
        raise InputError(
            f"{path}: a state dict without antigram's settings; this needs a checkpoint of "
            "`antigram train`, which carries classes and preprocessing"
        )
    return _checkpoint(path, content)


def _checkpoint(
    path: Path, content: Mapping[str, Any], dtypes: Collection[torch.dtype] = _OURS
) -> Checkpoint:
    number = content.get("format_version")
    if not isinstance(number, int) or isinstance(number, bool) or number < 1:
        raise InputError(f"{path}: format_version is {number!r}, wanted a number from 1")
    if number > VERSION:
        raise StoredDataError(
            f"{path}: written by checkpoint version {number}, "
            f"this antigram reads up to {VERSION}. Update antigram."
        )
    try:
        checkpoint = _fields(content)
        net = empty_net(checkpoint.arch, len(checkpoint.classes), checkpoint.recipe.shape)
        wanted = net.state_dict()
    except InputError as error:  # a network that does not exist, or that was not named
        raise InputError(f"{path}: {error}") from None
    except StoredDataError as error:
        recipe = content["recipe"]
        if isinstance(recipe, Mapping) and recipe.get("version") == RECIPE_VERSION:
            raise InputError(f"{path}: {error}") from None
        raise StoredDataError(f"{path}: {error}") from None  # a recipe of another version
    except KeyError as error:
        raise InputError(f"{path}: not a complete checkpoint: {error} is missing") from None
    except (TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise InputError(f"{path}: not a complete checkpoint: {error}") from None
    _check_tensors(path, checkpoint.state_dict, wanted, dtypes)
    return checkpoint


def _fields(content: Mapping[str, Any]) -> Checkpoint:
    """Build a checkpoint from the content of a file, with every field but the weights checked.

    Raises:
        StoredDataError: the recipe is invalid, or of another version.
        ValueError: another field is invalid. KeyError, TypeError, AttributeError and
            ArithmeticError may be raised for the same reason.
    """
    checkpoint = Checkpoint(
        arch=Arch(**content["arch"]),
        task=_text("task", content["task"]),
        classes=_names(content["classes"]),
        state_dict=dict(content["state_dict"]),
        recipe=Recipe.from_json(content["recipe"]),
        mean=_number("mean", content["mean"], -_MOST, _MOST),
        std=_number("std", content["std"], _LEAST, _MOST),
        provenance=dict(content["provenance"]),
        scores=_scores(content.get("scores", {})),
    )
    if isinstance(checkpoint.arch.width, bool):
        raise TypeError(f"width is {checkpoint.arch.width}, wanted a number")
    least = 2 ** checkpoint.arch.blocks.count("M") if checkpoint.arch.numbered else 1
    if min(checkpoint.recipe.shape) < least:
        frames, bins = checkpoint.recipe.shape
        raise ValueError(
            f"the recipe makes segments of {frames} frames and {bins} bins; the poolings of "
            f"{checkpoint.arch.name} need at least {least} x {least}"
        )
    return checkpoint


def _text(name: str, value: object) -> str:
    if not isinstance(value, str) or not value:
        raise TypeError(f"{name} is {value!r:.40}, wanted text")
    return value


def _number(name: str, value: object, least: float, most: float) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise TypeError(f"{name} is {value!r:.40}, wanted a number")
    if not least <= (number := float(value)) <= most:
        raise ValueError(f"{name} is {number}, wanted {least} to {most}")
    return number


def _names(value: object) -> list[str]:
    """Return the names of classes, after checking that all are text and differ."""
    if not isinstance(value, list | tuple) or not value:
        raise TypeError(f"classes is {value!r:.40}, wanted a list of names")
    names = [_text("a class", name) for name in value]
    if len(set(names)) < len(names):
        raise ValueError("two classes have one name")
    return names


def _scores(value: object) -> dict[str, dict[str, Any]]:
    """Return the scores by split, after checking the numbers that are shown to the user."""
    if not isinstance(value, dict) or not all(isinstance(score, dict) for score in value.values()):
        raise TypeError("scores are not a mapping from splits")
    for score in value.values():
        for name, most in (("accuracy", 1), ("chance", 1), ("majority", 1), ("segments", 2**63)):
            if score.get(name) is not None:
                _number(f"the score {name}", score[name], 0, most)
    return {_text("a split", split): dict(score) for split, score in value.items()}


def _check_tensors(
    path: Path,
    state: Mapping[str, Any],
    wanted: Mapping[str, Tensor],
    dtypes: Collection[torch.dtype],
) -> None:
    """Raise if a state dict does not belong to a network.

    Args:
        path: the file, for the message.
        state: the state dict to check.
        wanted: tensors of the network, for their names and shapes.
        dtypes: allowed dtypes.

    Raises:
        InputError: a tensor is missing, unknown, not plain, or not finite as float32; the message
            names the first such tensor.
    """
    for name, like in wanted.items():
        tensor, shape = state.get(name), tuple(like.shape)
        if not isinstance(tensor, Tensor):
            actual = "missing" if tensor is None else f"a {type(tensor).__name__}"
            raise InputError(f"{path}: {name} is {actual}, wanted {shape}")
        plain = tensor.layout == torch.strided and tensor.device.type == "cpu"
        counts = tensor.dtype == like.dtype == torch.int64  # of batches that a batch norm saw
        kind = counts or tensor.dtype in dtypes
        if not plain or tensor.is_neg() or tensor.is_quantized or not kind:
            kinds = ", ".join(map(_kind, dtypes))
            raise InputError(
                f"{path}: {name} is {_kind(tensor.dtype)} ({tensor.layout}, {tensor.device}), "
                f"wanted plain weights: {kinds}"
            )
        if tuple(tensor.shape) != shape:
            raise InputError(f"{path}: {name} is {tuple(tensor.shape)}, wanted {shape}")
        if counts or not tensor.numel():
            continue
        least, most = tensor.aminmax()  # both are NaN if any value is NaN
        if not (least >= -_MOST_FLOAT and most <= _MOST_FLOAT):
            raise InputError(
                f"{path}: {name} holds NaN or infinite values, or too large ones for float32; "
                "train it again"
            )
    if unknown := sorted(map(str, set(state) - set(wanted))):
        raise InputError(f"{path}: unknown tensor {unknown[0]}; it is none of the network's")


def _kind(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def open_teacher(path: Path) -> Teacher:
    """Read the network of a checkpoint, or the convolution part of a plain VGG state dict.

    Weights of another precision are converted to float32. The three input channels of a state dict
    (torchvision's ImageNet weights) are summed to one. `Teacher.note` reports either.

    Raises:
        InputError: the file is missing, or is neither a checkpoint nor a VGG state dict.
        StoredDataError: the file is damaged, or was written by a newer version.
    """
    content = load_tensors(path)
    if content.get("format") == FORMAT:
        checkpoint = _checkpoint(path, content, _TEACHERS)
        state, converted = _as_float32(checkpoint.state_dict)
        scores, task = checkpoint.scores, checkpoint.task
        if checkpoint.provenance.get("labels") == SHUFFLED:
            control, scores, task = "a control, trained on shuffled labels", {}, ""
            converted = f"{control}; {converted}" if converted else control
        note = f"{path}: {converted}" if converted else ""
        return replace(checkpoint, state_dict=state, scores=scores, task=task).teacher(note)
    state = {name: t for name, t in conv_state(content).items() if isinstance(t, Tensor)}
    arch, channels = _arch_of(path, state)
    wanted = dict(empty_net(arch, 0).state_dict())
    wanted["features.0.weight"] = torch.empty(arch.width, channels, 3, 3, device="meta")
    _check_tensors(path, state, wanted, _TEACHERS)
    state, converted = _as_float32({name: state[name] for name in wanted})
    note = f"{path}: a plain state dict, taken as {arch.name} of width {arch.width}"
    note += f"; {converted}" if converted else ""
    if channels == 3:
        state["features.0.weight"] = state["features.0.weight"].sum(1, keepdim=True)
        note += "; its three input channels were summed to one"
    return Teacher(arch, state, note)


def _arch_of(path: Path, state: Mapping[str, Tensor]) -> tuple[Arch, int]:
    """Return the VGG that a state dict belongs to, and its number of input channels."""
    first = state.get("features.0.weight")
    convs = sum(tensor.ndim == 4 for tensor in state.values())
    normed = any(name.endswith("running_mean") for name in state)
    if first is None or first.ndim != 4 or first.shape[1] not in (1, 3):
        raise InputError(
            f"{path}: neither a checkpoint of antigram nor a VGG state dict "
            "(features.0.weight of shape (channels, 1 or 3, 3, 3))"
        )
    if convs not in (names := archs_by_layers(normed=normed)):
        raise InputError(f"{path}: {convs} convolution layers; a VGG has {sorted(names)}")
    try:
        return Arch(names[convs], first.shape[0]), first.shape[1]
    except InputError:
        raise InputError(
            f"{path}: features.0.weight has {first.shape[0]} channels, wanted 1 to 1024"
        ) from None


def _as_float32(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], str]:
    """Convert weights to float32; return them with a note that names the dtypes converted."""
    floats = {name: t for name, t in state.items() if t.is_floating_point()}
    dtypes = sorted({_kind(t.dtype) for t in floats.values() if t.dtype != torch.float32})
    note = f"its {', '.join(dtypes)} weights were converted to float32" if dtypes else ""
    return {**state, **{name: tensor.float() for name, tensor in floats.items()}}, note
