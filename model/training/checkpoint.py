"""Checkpoints: what they hold, and what of it is refused. Their files: `model.training.tensors`."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from antigram.model.nets.arch import Arch, archs_by_layers
from antigram.model.nets.vgg import Vgg, conv_state
from antigram.model.training.tensors import FORMAT, load_tensors, save_tensors, write_tensors
from antigram.pipeline.errors import InputError, StoredDataError
from antigram.pipeline.features.recipe import VERSION as RECIPE_VERSION
from antigram.pipeline.features.recipe import Recipe

__all__ = [
    "Checkpoint",
    "Teacher",
    "load_checkpoint",
    "load_tensors",
    "open_teacher",
    "save_tensors",
    "write_tensors",
]

VERSION = 1
_LEAST, _MOST = 1e-30, 1e30  # of a standard deviation: it and 1 over it are finite in float32
_MOST_FLOAT = torch.finfo(torch.float32).max
_OURS = (torch.float32,)
_OTHERS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)  # of a teacher


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
class Teacher:
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
        found = _fields(content)
        with torch.device("meta"):
            wanted = Vgg(found.arch, len(found.classes)).state_dict()
    except StoredDataError as error:
        recipe = content["recipe"]
        if isinstance(recipe, Mapping) and recipe.get("version") == RECIPE_VERSION:
            raise InputError(f"{path}: {error}") from None
        raise StoredDataError(f"{path}: {error}") from None  # a recipe of another version
    except KeyError as error:
        raise InputError(f"{path}: not a complete checkpoint: {error} is missing") from None
    except (TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise InputError(f"{path}: not a complete checkpoint: {error}") from None
    _check_tensors(path, found.state_dict, wanted, dtypes)
    return found


def _fields(content: Mapping[str, Any]) -> Checkpoint:
    """A checkpoint of what was stored, tensors aside.

    Raises:
        StoredDataError: the recipe is of another version, or says what none may.
        ValueError: another field does; so do KeyError, TypeError, AttributeError, OverflowError.
    """
    found = Checkpoint(
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
    if isinstance(found.arch.width, bool):
        raise TypeError(f"width is {found.arch.width}, wanted a number")
    least = 2 ** found.arch.blocks.count("M")
    if min(found.recipe.shape) < least:
        frames, bins = found.recipe.shape
        raise ValueError(
            f"the recipe makes segments of {frames} frames and {bins} bins; the poolings of "
            f"{found.arch.name} leave nothing of less than {least} x {least}"
        )
    return found


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
    """Names of classes: text, each once."""
    if not isinstance(value, list | tuple) or not value:
        raise TypeError(f"classes is {value!r:.40}, wanted a list of names")
    names = [_text("a class", name) for name in value]
    if len(set(names)) < len(names):
        raise ValueError("two classes have one name")
    return names


def _scores(value: object) -> dict[str, dict[str, Any]]:
    """By split; what they hold is for people, and no number that is not one is among it."""
    if not isinstance(value, dict) or not all(isinstance(of, dict) for of in value.values()):
        raise TypeError("scores are not those of splits")
    for of in value.values():
        for name, most in (("accuracy", 1), ("chance", 1), ("majority", 1), ("segments", 2**63)):
            if of.get(name) is not None:
                _number(f"the score {name}", of[name], 0, most)
    return {_text("a split", split): dict(of) for split, of in value.items()}


def _check_tensors(
    path: Path,
    state: Mapping[str, Any],
    wanted: Mapping[str, Tensor],
    dtypes: Collection[torch.dtype],
) -> None:
    """Refuse weights that are not those of a net, naming the first that is not.

    Args:
        path: for the message.
        state: as they were read.
        wanted: with the shapes they must have.
        dtypes: that are taken.

    Raises:
        InputError: a tensor is missing, unknown, not plain, or not finite as float32.
    """
    for name, like in wanted.items():
        tensor, shape = state.get(name), tuple(like.shape)
        if not isinstance(tensor, Tensor):
            is_ = "missing" if tensor is None else f"a {type(tensor).__name__}"
            raise InputError(f"{path}: {name} is {is_}, wanted {shape}")
        plain = tensor.layout == torch.strided and tensor.device.type == "cpu"
        if not plain or tensor.is_neg() or tensor.is_quantized or tensor.dtype not in dtypes:
            kinds = ", ".join(map(_kind, dtypes))
            raise InputError(
                f"{path}: {name} is {_kind(tensor.dtype)} ({tensor.layout}, {tensor.device}), "
                f"wanted plain weights: {kinds}"
            )
        if tuple(tensor.shape) != shape:
            raise InputError(f"{path}: {name} is {tuple(tensor.shape)}, wanted {shape}")
        least, most = tensor.aminmax()  # NaN if any is
        if not (least >= -_MOST_FLOAT and most <= _MOST_FLOAT):
            raise InputError(
                f"{path}: {name} holds NaN or infinite values, or too large ones for float32; "
                "train it again"
            )
    if unknown := sorted(map(str, set(state) - set(wanted))):
        raise InputError(f"{path}: unknown tensor {unknown[0]}; wanted a VGG without batch norm")


def _kind(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def open_teacher(path: Path) -> Teacher:
    """Read the convolution part of a checkpoint, or of a plain VGG state dict.

    Weights of another precision are converted to float32. Three input channels of a state dict
    (torchvision's ImageNet weights) are summed to one. Both are said in the note.

    Raises:
        InputError: neither of the two.
        StoredDataError: damaged, or of a newer version.
    """
    content = load_tensors(path)
    if content.get("format") == FORMAT:
        ours = _checkpoint(path, content, _OTHERS)
        state, converted = _as_float32(conv_state(ours.state_dict))
        note = f"{path}: {converted}" if converted else ""
        return Teacher(ours.arch, state, note, ours.scores)
    state = {name: t for name, t in conv_state(content).items() if isinstance(t, Tensor)}
    arch, channels = _arch_of(path, state)
    with torch.device("meta"):
        wanted = Vgg(arch, 0).state_dict()
    wanted["features.0.weight"] = torch.empty(arch.width, channels, 3, 3, device="meta")
    _check_tensors(path, state, wanted, _OTHERS)
    state, converted = _as_float32({name: state[name] for name in wanted})
    note = f"{path}: a plain state dict, taken as {arch.name} of width {arch.width}"
    note += f"; {converted}" if converted else ""
    if channels == 3:
        state["features.0.weight"] = state["features.0.weight"].sum(1, keepdim=True)
        note += "; its three input channels were summed to one"
    return Teacher(arch, state, note)


def _arch_of(path: Path, state: Mapping[str, Tensor]) -> tuple[Arch, int]:
    """Which VGG a state dict is of, and its input channels."""
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
    try:
        return Arch(names[convs], first.shape[0]), first.shape[1]
    except InputError:
        raise InputError(
            f"{path}: features.0.weight has {first.shape[0]} channels, wanted 1 to 1024"
        ) from None


def _as_float32(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], str]:
    """Weights in float32, and what was said of those that were not."""
    others = sorted({_kind(t.dtype) for t in state.values() if t.dtype != torch.float32})
    said = f"its {', '.join(others)} weights were converted to float32" if others else ""
    return {name: tensor.float() for name, tensor in state.items()}, said
