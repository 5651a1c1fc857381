"""Checkpoints: tensors and plain types only, never unpickled into code."""

from __future__ import annotations

import math
import pickle
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from model.arch import Arch, archs_by_layers
from model.vgg import Vgg, conv_state
from pipeline.chunks import whole_file
from pipeline.errors import InputError, StoredDataError
from pipeline.recipe import Recipe

__all__ = [
    "Checkpoint",
    "Frozen",
    "load_checkpoint",
    "load_frozen",
    "load_tensors",
    "save_tensors",
    "write_tensors",
]

FORMAT = "antigram/checkpoint"
VERSION = 1
# What torch.load raises for files that are no checkpoints, or not whole.
_UNREADABLE = (
    OSError,
    pickle.UnpicklingError,
    RuntimeError,
    EOFError,
    ValueError,
    KeyError,
    IndexError,
    AttributeError,
    TypeError,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """A trained net, and all that is needed to use it on audio.

    Attributes:
        arch: the net's.
        task: label it was trained for.
        classes: names of the outputs.
        state_dict: weights, by torchvision's names.
        recipe: how its input was made.
        mean: of the training split it was normalised with.
        std: likewise.
        provenance: where it comes from: run, mode, versions; nothing depends on it.
        scores: by split, what it reached: accuracy, chance, majority, segments; empty for
            checkpoints of before there were scores.
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
        """What is stored."""
        return {
            "format": FORMAT,
            "format_version": VERSION,
            "arch": asdict(self.arch),
            "task": self.task,
            "classes": self.classes,
            "state_dict": self.state_dict,
            "recipe": self.recipe.to_json(),
            "mean": self.mean,
            "std": self.std,
            "provenance": self.provenance,
            "scores": self.scores,
        }

    def net(self) -> Vgg:
        """The net with its weights, in eval mode."""
        net = Vgg(self.arch, len(self.classes))
        net.load_state_dict(self.state_dict)
        return net.eval()


@dataclass(frozen=True, slots=True)
class Frozen:
    """The convolution part of a trained net.

    Attributes:
        arch: the net's.
        state: tensors of ``features``.
        note: what was done to read it, for the user; empty for our own checkpoints.
        scores: as in `Checkpoint`.
    """

    arch: Arch
    state: dict[str, Tensor]
    note: str
    scores: dict[str, dict[str, Any]] = field(default_factory=dict)

    def net(self) -> Vgg:
        """The convolution part with its weights. Draws from no random generator."""
        with torch.device("meta"):
            net = Vgg(self.arch, 0)
        net.load_state_dict(self.state, assign=True)
        return net.to(memory_format=torch.channels_last).eval()


def save_tensors(path: Path, content: Mapping[str, Any]) -> None:
    """`write_tensors` to a file that is there as a whole or not at all."""
    with whole_file(path) as file:
        write_tensors(file, content)


def write_tensors(file: Any, content: Mapping[str, Any]) -> None:  # noqa: ANN401 - has `write`
    """`torch.save` to an open file; `load_tensors` reads it."""
    torch.save(dict(content), file)


def load_tensors(path: Path) -> dict[str, Any]:
    """Read a file of tensors and plain types, and nothing else.

    Raises:
        InputError: not there, not such a file, or one that would run code.
    """
    if not path.is_file():
        raise InputError(
            f"{path}: no such file; wanted a checkpoint (`antigram train --save FILE`)"
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of odd pickles: the error says enough
            content = torch.load(path, map_location="cpu", weights_only=True)
    except _UNREADABLE as error:
        why = "it holds more than tensors and plain types, or was not written by torch.save"
        if isinstance(error, RuntimeError):  # of the archive, and it says what
            why = str(error).strip().splitlines()[0][:120]
        raise InputError(
            f"{path}: not a checkpoint that can be read safely: {why}. "
            "Wanted: a file of `antigram train --save`, or a VGG state dict of plain tensors."
        ) from None
    if not isinstance(content, dict):
        raise InputError(
            f"{path}: holds a {type(content).__name__}, wanted a checkpoint or a state dict"
        )
    return content


def load_checkpoint(path: Path) -> Checkpoint:
    """Read one of our checkpoints.

    Raises:
        InputError: it is none, or not whole.
        StoredDataError: of a newer version.
    """
    content = load_tensors(path)
    if content.get("format") != FORMAT:
        raise InputError(
            f"{path}: a state dict without antigram's settings; this needs a checkpoint of "
            "`antigram train`, which carries classes and preprocessing"
        )
    return _checkpoint(path, content)


def _checkpoint(path: Path, content: Mapping[str, Any]) -> Checkpoint:
    if not isinstance(number := content.get("format_version"), int):
        raise InputError(f"{path}: format_version is {number!r}, wanted a number")
    if number > VERSION:
        raise StoredDataError(
            f"{path}: written by checkpoint version {number}, "
            f"this antigram reads up to {VERSION}. Update antigram."
        )
    try:
        found = Checkpoint(
            arch=Arch(**content["arch"]),
            task=content["task"],
            classes=list(content["classes"]),
            state_dict=dict(content["state_dict"]),
            recipe=Recipe.from_json(content["recipe"]),
            mean=float(content["mean"]),
            std=float(content["std"]),
            provenance=dict(content["provenance"]),
            scores=_scores(content.get("scores", {})),
        )
        with torch.device("meta"):
            wanted = Vgg(found.arch, len(found.classes)).state_dict()
        if not (math.isfinite(found.mean) and 0 < found.std < math.inf):
            raise ValueError(f"mean is {found.mean}, std is {found.std}")
    except StoredDataError as error:  # a recipe of another version
        raise StoredDataError(f"{path}: {error}") from None
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"{path}: a checkpoint that is not whole ({error!r})") from None
    _check_shapes(path, found.state_dict, wanted)
    return found


def _scores(value: object) -> dict[str, dict[str, Any]]:
    if not isinstance(value, dict) or not all(isinstance(of, dict) for of in value.values()):
        raise TypeError("scores are not those of splits")
    return {str(split): dict(of) for split, of in value.items()}


def _check_shapes(path: Path, state: Mapping[str, Any], wanted: Mapping[str, Tensor]) -> None:
    shapes = {name: tuple(t.shape) if isinstance(t, Tensor) else None for name, t in state.items()}
    for name, tensor in wanted.items():
        if shapes.get(name) != tuple(tensor.shape):
            raise InputError(
                f"{path}: {name} is {shapes.get(name, 'missing')}, wanted {tuple(tensor.shape)}"
            )
        if not torch.isfinite(state[name]).all():
            raise InputError(f"{path}: {name} holds NaN or infinite values; train it again")
    if unknown := sorted(map(str, set(shapes) - set(wanted))):
        raise InputError(f"{path}: unknown tensor {unknown[0]}; wanted a VGG without batch norm")


def load_frozen(path: Path) -> Frozen:
    """Read the convolution part of a checkpoint, or of a plain VGG state dict.

    A state dict with three input channels (torchvision's ImageNet weights) is summed to one.

    Raises:
        InputError: neither of the two.
    """
    content = load_tensors(path)
    if content.get("format") == FORMAT:
        found = _checkpoint(path, content)
        return Frozen(found.arch, conv_state(found.state_dict), "", found.scores)
    state = {name: t for name, t in conv_state(content).items() if isinstance(t, Tensor)}
    first = state.get("features.0.weight")
    convs = sum(name.endswith(".weight") for name in state)
    if first is None or first.ndim != 4 or first.shape[1] not in (1, 3):
        raise InputError(
            f"{path}: neither a checkpoint of antigram nor a VGG state dict "
            "(features.0.weight of shape (channels, 1 or 3, 3, 3))"
        )
    if convs not in (names := archs_by_layers()):
        raise InputError(
            f"{path}: {convs} convolution layers; a VGG without batch norm has {sorted(names)}"
        )
    note = f"{path}: a plain state dict, taken as {names[convs]} of width {first.shape[0]}"
    if first.shape[1] == 3:
        state["features.0.weight"] = first.sum(1, keepdim=True)
        note += "; its three input channels were summed to one"
    arch = Arch(names[convs], first.shape[0])
    with torch.device("meta"):
        wanted = Vgg(arch, 0).state_dict()
    _check_shapes(path, state, wanted)
    return Frozen(arch, {name: state[name].float() for name in wanted}, note)
