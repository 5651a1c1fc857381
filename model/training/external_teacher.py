"""A teacher that antigram did not train: what it takes, and the maps of its layers."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from antigram.model.choices import Layer, Tap, layer_order
from antigram.model.nets.arch import Arch
from antigram.model.nets.external import External, external_arch, external_net, module_digest
from antigram.model.nets.hooks import check_names
from antigram.pipeline.errors import InputError
from antigram.pipeline.features.recipe import Recipe
from antigram.pipeline.features.segment_audio import SegmentAudio
from antigram.pipeline.features.store import FeatureStore

__all__ = ["ExternalTeacher"]


class ExternalTeacher:
    """A frozen module that is a teacher; it can take the place of a `Teacher` in a cache.

    Args:
        text: one of `PRETRAINED`, or ``FILE.py:function``: see `external_net`.
        audio: opens the audio of the segments at a sampling rate; called if the module takes
            audio, which it does if it has an attribute ``sample_rate``.

    Attributes:
        arch: name, and digest of the code.
        recipe: None: the features that it was trained on are not known.
        task: empty: so is its task.
        audio: audio of the segments; None for a teacher that takes stored features.

    Raises:
        InputError: as for `external_net`.
    """

    def __init__(self, text: str, audio: Callable[[int], SegmentAudio]) -> None:
        self.arch: Arch = external_arch(text)
        self.recipe: Recipe | None = None
        self.task = ""
        self._module = external_net(text)
        self._text = text
        rate = getattr(self._module, "sample_rate", None)
        self.audio = None if rate is None else audio(rate)
        identity = f"{self.arch.name}\0{self.arch.source}\0{rate}\0{module_digest(self._module)}"
        self._digest = hashlib.sha256(identity.encode()).hexdigest()

    def net(self) -> External:
        """Return the module as a backbone."""
        return External(self._module, self.arch)

    def digest(self, layer: Layer, tap: Tap) -> str:
        """Return the SHA-256 over code, sampling rate and all weights; the same for all layers."""
        del layer, tap
        return self._digest

    def read(
        self, store: FeatureStore, segments: slice | Sequence[int] | NDArray[np.int64]
    ) -> NDArray[np.float32]:
        """Return what the teacher takes of some segments.

        Args:
            store: features.
            segments: indices into the store.

        Returns:
            ``(segment, sample)`` audio, or ``(segment, frame, freq)`` features; float32.

        Raises:
            InputError: as for `SegmentAudio.take`.
            DamagedError: the features are damaged.
        """
        if self.audio is None:
            return store.features_of(segments)
        if isinstance(segments, slice):
            segments = range(*segments.indices(len(store)))
        return self.audio.take(segments)

    def zeros(self, store: FeatureStore, count: int) -> Tensor:
        """Return silence for some segments, as the module takes it."""
        if self.audio is not None:
            return torch.zeros(count, self.audio.samples)
        return torch.zeros(count, 1, *store.shape)

    def layers(self, texts: Sequence[str | int]) -> tuple[Layer, ...]:
        """Return names of modules, sorted; ``all`` stands for the attribute ``layers``.

        Raises:
            InputError: the module has no such layer, or no attribute ``layers``.
        """
        known = getattr(self._module, "layers", ())
        names = [str(text) for text in texts]
        if "all" in names:
            if isinstance(known, nn.Module) or not known:
                raise InputError(
                    f"`layers` all: {self._text} does not say which; name modules, or give the "
                    "module an attribute `layers`"
                )
            names = list(known)
        return tuple(sorted(check_names(self._module, names), key=layer_order))

    def map_shape(self, layer: Layer, tap: Tap, store: FeatureStore) -> tuple[int, int, int]:
        """Return channels, height and width of a layer's maps of one segment.

        Raises:
            InputError: the module cannot take such a segment, or has no such layer.
        """
        shapes: list[tuple[int, int, int]] = []

        def on_tap(_: Layer, maps: Tensor) -> None:
            if maps.shape[0] != 2:
                raise InputError(
                    f"`layers` {layer}: its maps of 2 segments are {tuple(maps.shape)}; wanted "
                    "(segment, channel, height, width)"
                )
            shapes.append((maps.shape[1], maps.shape[2], maps.shape[3]))

        x = self.zeros(store, 2)
        try:
            with torch.no_grad():
                self.net().run_features(x, [layer], tap, on_tap, stop=True)
        except InputError:
            raise
        except Exception as error:
            raise InputError(
                f"`teacher` {self._text}: cannot take {tuple(x.shape)}: {type(error).__name__}: "
                f"{' '.join(str(error).split())[:300]}"
            ) from error
        return shapes[0]
