"""What a layer of a cache was made from: everything that changes one of its numbers.

Paths, times, names, batch size, device and worker counts are not in it: they are no identity.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from antigram.model.choices import Aggregation, Codec, Dtype, Precision, Tap
from antigram.model.nets.arch import Arch
from antigram.pipeline.audio.augmentation import Views
from antigram.pipeline.errors import DamagedError, StaleError

__all__ = ["CacheKey", "layer_name"]

# Bump when the code makes other numbers from the same fields.
VERSION = "grams/1"
_OPTIONAL = ("views", "control")  # stored only where they are used
_STORED_32 = "float32"  # as the format spells the precision that is 32 elsewhere


def layer_name(layer: int) -> str:
    """Group of a layer in a cache: ``layer05``."""
    return f"layer{layer:02d}"


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheKey:
    """Identity of one layer's rows.

    Attributes:
        extractor: SHA-256 of the teacher's tensors up to the tap.
        arch: of the teacher.
        features: fingerprint of the feature store.
        layer: convolution layer.
        tap: relu, conv or released.
        aggregation: gram, mean, sum, max or compmul.
        codec: packed, factor, lowrank or map.
        dtype: of the stored rows.
        energy: that the pilot's clips keep under ``lowrank``; None for other codecs, or by rank.
        rank: of ``lowrank``, where it was asked for.
        precision: of the arithmetic: 32, tf32 or bf16.
        version: of the code.
        views: how clips are augmented; None if they are taken as they are.
        control: ``mean-gram`` if one row stands for all segments; else None. Other controls change
            the extractor.
    """

    extractor: str
    arch: Arch
    features: str
    layer: int
    tap: Tap
    aggregation: Aggregation
    codec: Codec
    dtype: Dtype
    energy: float | None = None
    rank: int | None = None
    precision: Precision = "32"
    version: str = VERSION
    views: Views | None = None
    control: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain types, for the layer's attributes; without the optional fields that are None."""
        plain = asdict(self)
        if self.precision == "32":
            plain["precision"] = _STORED_32
        for name in _OPTIONAL:
            if plain[name] is None:
                del plain[name]
        return plain

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> CacheKey:
        """Inverse of `to_json`.

        Raises:
            DamagedError: fields are missing or unknown.
        """
        names = {field.name for field in fields(cls)}
        if odd := (set(stored) | set(_OPTIONAL)) ^ names:
            raise DamagedError(
                f"cache key: fields {', '.join(sorted(odd))} missing or unknown; build the cache "
                "again"
            )
        views = Views.from_json(stored["views"]) if "views" in stored else None
        precision = "32" if stored["precision"] == _STORED_32 else stored["precision"]
        own = {"arch": Arch(**stored["arch"]), "precision": precision, "views": views}
        return cls(**{**stored, **own})

    def require(self, where: str, wanted: Mapping[str, object]) -> None:
        """Refuse rows that were made from something else than what a run needs.

        Args:
            where: the cache, for the message.
            wanted: field -> value needed.

        Raises:
            StaleError: naming the field, what it was and what it is.
        """
        for name, is_ in wanted.items():
            was = getattr(self, name)
            if was != is_:
                raise StaleError(
                    f"{where}: stale: layer {self.layer} was built with {name} {_short(was)}, this "
                    f"run has {_short(is_)}. Build it again with `antigram cache-grams`, or name "
                    "what it was built from."
                )


def _short(value: object) -> str:
    text = f"{value.name} of width {value.width}" if isinstance(value, Arch) else str(value)
    return f"{text[:12]}..." if len(text) == 64 else text
