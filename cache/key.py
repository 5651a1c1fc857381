"""The key of a cached layer: everything that decides the layer's numbers.

Paths, times, names, batch size, device and number of workers do not decide numbers, and are
therefore not in the key.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any
from urllib.parse import quote, unquote

from antigram.model.choices import Aggregation, Codec, Layer, Precision, RowDtype, Tap
from antigram.model.nets.arch import Arch
from antigram.pipeline.audio.augmentation import Views
from antigram.pipeline.errors import DamagedError, InputError, StaleError

__all__ = ["CacheKey", "layer_name", "layer_of"]

# Bump this when the code computes other numbers from the same fields.
VERSION = "grams/1"
_OPTIONAL = ("views", "control", "grid")  # fields that are stored only if they are not None
_MODULE = "module-"  # before the name of a module, in the name of its group
_MOST_LETTERS = 200  # of a group's name; file systems allow 255 with suffixes of work in progress
_STORED_32 = "float32"  # the format's name of the precision that is called 32 elsewhere


def layer_name(layer: Layer) -> str:
    """Return the name of a layer's group in a cache.

    Returns:
        ``layer05`` for a number. For a module's name ``module-`` and the name, with ``-`` for each
        dot, and any character but letters, digits, ``_`` and ``~`` as in a URL:
        ``module-layer3-1-conv2`` for ``layer3.1.conv2``.

    Raises:
        InputError: the name is too long for a folder.
    """
    if isinstance(layer, int):
        return f"layer{layer:02d}"
    parts = (quote(part, safe="").replace("-", "%2D") for part in layer.split("."))
    if len(name := f"{_MODULE}{'-'.join(parts)}") > _MOST_LETTERS:
        raise InputError(f"`layers` {layer:.60}...: the name is too long for a folder of a cache")
    return name


def layer_of(name: str) -> Layer:
    """Return the layer of a group's name: see `layer_name`."""
    if name.startswith(_MODULE):
        return ".".join(unquote(part) for part in name.removeprefix(_MODULE).split("-"))
    return int(name.removeprefix("layer"))


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheKey:
    """Identity of one layer's rows.

    Attributes:
        extractor: SHA-256 of the teacher's tensors up to the tap.
        arch: name and width of the teacher.
        features: fingerprint of the feature store.
        layer: number of a VGG's convolution layer, counted from 1, or name of a module.
        tap: ``relu``, ``conv`` or ``released``.
        aggregation: ``gram``, ``mean``, ``sum``, ``max``, ``compmul`` or ``pairwise``.
        codec: ``packed``, ``factor``, ``lowrank`` or ``map``.
        dtype: dtype of the stored rows: ``float32``, ``float16`` or ``int8``.
        energy: share of ||G||^2 that every segment of the pilot keeps, for ``lowrank`` without a
            requested rank; else None.
        rank: columns of a ``lowrank`` row, if a rank was requested; else None.
        precision: precision of the teacher's arithmetic: ``32``, ``tf32`` or ``bf16``.
        version: version of the code that computes the rows.
        views: augmentation of the segments; None for no augmentation.
        control: ``mean-gram`` if one row stands for all segments; else None. Other controls change
            the extractor.
        grid: frames and frequencies that the maps are averaged to, for ``pairwise``; else None.
    """

    extractor: str
    arch: Arch
    features: str
    layer: Layer
    tap: Tap
    aggregation: Aggregation
    codec: Codec
    dtype: RowDtype
    energy: float | None = None
    rank: int | None = None
    precision: Precision = "32"
    version: str = VERSION
    views: Views | None = None
    control: str | None = None
    grid: tuple[int, int] | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the key as plain types, to store; without the optional fields that are None."""
        plain = {**asdict(self), "arch": self.arch.to_json()}
        if self.precision == "32":
            plain["precision"] = _STORED_32
        for name in _OPTIONAL:
            if plain[name] is None:
                del plain[name]
        if self.grid is not None:
            plain["grid"] = list(self.grid)
        return plain

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> CacheKey:
        """Return the key that `to_json` turned into plain types.

        Raises:
            DamagedError: fields are missing or unknown, or the grid does not go with the others.
        """
        names = {field.name for field in fields(cls)}
        if odd := (set(stored) | set(_OPTIONAL)) ^ names:
            raise DamagedError(
                f"cache key: fields {', '.join(sorted(odd))} missing or unknown; rebuild the cache"
            )
        views = Views.from_json(stored["views"]) if "views" in stored else None
        precision = "32" if stored["precision"] == _STORED_32 else stored["precision"]
        grid = _grid(stored)
        parsed = {"arch": Arch(**stored["arch"]), "precision": precision, "views": views}
        parsed["grid"] = grid
        return cls(**{**stored, **parsed})

    def require(self, where: str, wanted: Mapping[str, object]) -> None:
        """Raise if a field differs from what a run needs.

        Args:
            where: path of the cache, for the message.
            wanted: the values needed, by field.

        Raises:
            StaleError: a field differs; the message names it and both values.
        """
        for name, needed in wanted.items():
            stored = getattr(self, name)
            if stored != needed:
                raise StaleError(
                    f"{where}: stale: layer {self.layer} was built with {name} {_short(stored)}, "
                    f"this run has {_short(needed)}. Rebuild it with `antigram cache-grams`, or "
                    "name what it was built from."
                )


def _grid(stored: Mapping[str, Any]) -> tuple[int, int] | None:
    """Return the grid of a stored key, which exactly ``pairwise`` has."""
    grid = stored.get("grid")
    if (grid is not None) != (stored["aggregation"] == "pairwise"):
        raise DamagedError(
            f"cache key: aggregation {stored['aggregation']}, grid {grid}; rebuild the cache"
        )
    match grid:
        case None:
            return None
        case [int(frames), int(freqs)] if min(frames, freqs) >= 1:
            return frames, freqs
    raise DamagedError(f"cache key: the grid is {grid}; rebuild the cache")


def _short(value: object) -> str:
    text = str(value)
    return f"{text[:12]}..." if len(text) == 64 else text
