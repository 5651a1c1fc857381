"""Allowed values of the settings of a training and of a cache.

Each list is written once, as a `Literal`: see `pipeline.choices`. This module does not import
torch.
"""

from __future__ import annotations

import re
from typing import Literal, cast, get_args

from antigram.pipeline.choices import Dtype, check_choice
from antigram.pipeline.errors import InputError

__all__ = [
    "AGGREGATIONS",
    "ARCHS",
    "CLASS_WEIGHTS",
    "CODECS",
    "CONTROLS",
    "DTYPES",
    "INT8_NOTE",
    "LOSSES",
    "MODES",
    "NEED_LABELS",
    "PRECISIONS",
    "ROW_DTYPES",
    "SCHEDULES",
    "SIMILARITIES",
    "TAPS",
    "Aggregation",
    "ArchName",
    "ClassWeights",
    "Codec",
    "Control",
    "Dtype",
    "Init",
    "Layer",
    "Loss",
    "Mode",
    "Precision",
    "RowDtype",
    "Schedule",
    "Similarity",
    "Tap",
    "layer_order",
    "matrix_side",
    "precision_of",
    "similarity_of",
]

Mode = Literal["baseline", "wi", "frozen", "online", "cached", "dann", "coral"]
Layer = int | str  # number of a VGG's convolution layer, or name of a module
ArchName = Literal[
    "vgg11", "vgg13", "vgg16", "vgg19", "vgg11_bn", "vgg13_bn", "vgg16_bn", "vgg19_bn", "resnet18",
    "resnet34", "resnet50", "convnext_tiny", "efficientnet_b0", "cnn14", "crnn", "ast",
]  # fmt: skip
Init = Literal["scaled", "torchvision"]
Tap = Literal["relu", "conv", "released"]
Aggregation = Literal["gram", "mean", "sum", "max", "compmul", "pairwise"]
Similarity = Literal["cos2", "mse-sigmoid", "cka"]
Loss = Literal["paper", "released"]
Precision = Literal["32", "tf32", "bf16"]
Schedule = Literal["constant", "cosine", "plateau"]
ClassWeights = Literal["balanced"]
Codec = Literal["packed", "factor", "lowrank", "map"]
RowDtype = Literal["float32", "float16", "int8"]
Control = Literal["permuted", "random", "mean-gram"]

MODES: tuple[Mode, ...] = get_args(Mode)
# These need a second label of the student's own segments.
NEED_LABELS: tuple[Mode, ...] = ("dann", "coral")
ARCHS: tuple[ArchName, ...] = get_args(ArchName)
TAPS: tuple[Tap, ...] = get_args(Tap)
AGGREGATIONS: tuple[Aggregation, ...] = get_args(Aggregation)
SIMILARITIES: tuple[Similarity, ...] = get_args(Similarity)
LOSSES: tuple[Loss, ...] = get_args(Loss)
PRECISIONS: tuple[Precision, ...] = get_args(Precision)
SCHEDULES: tuple[Schedule, ...] = get_args(Schedule)
CLASS_WEIGHTS: tuple[ClassWeights, ...] = get_args(ClassWeights)
CODECS: tuple[Codec, ...] = get_args(Codec)
CONTROLS: tuple[Control, ...] = get_args(Control)
DTYPES: tuple[Dtype, ...] = get_args(Dtype)  # of features
ROW_DTYPES: tuple[RowDtype, ...] = get_args(RowDtype)
INT8_NOTE = "int8 changes a similarity by up to 0.001"  # measured: see docs/benchmarks.md


def layer_order(layer: Layer) -> tuple[object, ...]:
    """Return a key by which layers are sorted: numbers first, then names in their natural order."""
    if isinstance(layer, int):
        return (0, layer)
    parts = re.split(r"([0-9]+)", layer)
    return (1, *(int(part) if part.isdecimal() else part for part in parts))


def precision_of(name: str) -> Precision:
    """Return the precision of a name; ``float32`` is another name for ``32``.

    A cache's key is stored with ``float32``; everywhere else, that precision is called ``32``.

    Raises:
        InputError: there is no such precision.
    """
    name = "32" if name == "float32" else name
    check_choice("precision", name, PRECISIONS)
    return cast("Precision", name)


def similarity_of(aggregation: Aggregation, similarity: Similarity | None = None) -> Similarity:
    """Return the similarity of an aggregation: the given one, or the default of the aggregation.

    Args:
        aggregation: what is compared.
        similarity: how it is compared; None for the default: ``cka`` with ``pairwise``, else
            ``cos2``.

    Raises:
        InputError: there is no such similarity, or the aggregation cannot have it.
    """
    if similarity is None:
        return "cka" if aggregation == "pairwise" else "cos2"
    check_choice("similarity", similarity, SIMILARITIES)
    if similarity == "cka" and aggregation != "pairwise":
        raise InputError(
            f"`similarity=cka` belongs to `aggregation=pairwise`; `aggregation={aggregation}` "
            "takes `similarity=cos2` or `mse-sigmoid`"
        )
    if similarity == "mse-sigmoid" and aggregation == "pairwise":
        raise InputError(
            "`similarity=mse-sigmoid`: `aggregation=pairwise` takes `similarity=cka` or `cos2`"
        )
    return similarity


def matrix_side(aggregation: Aggregation, channels: int, positions: int) -> int:
    """Return the number of rows of the square matrix that is compared.

    It is the number of channels, with ``pairwise`` the number of positions.

    Args:
        aggregation: ``gram`` or ``pairwise``; other aggregations have no matrix.
        channels: channels of the maps.
        positions: positions of the maps, for ``pairwise`` of the grid.
    """
    return positions if aggregation == "pairwise" else channels
