"""Batches of a data loader: the ids of their segments, and the input of a network."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from antigram.pipeline.errors import InputError

__all__ = ["LoadedBatch"]

_IDS = ("clip_id", "clip_ids")
_TARGETS = ("y", "label", "labels")  # a network would compute a loss of them
_WANTED = (
    "wanted (x, ..., clip_ids), or a dictionary with `clip_ids` and either 'x' or the arguments of "
    "the network"
)


@dataclass(slots=True)
class LoadedBatch:
    """A batch as a loader gives it.

    Attributes:
        ids: ids of the segments.
        args: positional arguments of the network.
        kwargs: arguments of the network by name.
        rows: rows of the teacher by layer, once they are computed: arrays (segment, ...).
    """

    ids: list[str]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    rows: dict[Any, tuple[NDArray[Any], ...]] = field(default_factory=dict)

    @classmethod
    def of(cls, batch: object) -> LoadedBatch:
        """Take a batch apart.

        Args:
            batch: a tuple or list whose first element is the input of the network and whose last
                are the ids; or a dictionary with the ids as ``clip_ids`` or ``clip_id``, and the
                input as ``x``, or else as arguments of the network by name, without ``y``,
                ``label`` and ``labels``.

        Raises:
            InputError: it is neither, or the ids are not a sequence of different texts.
        """
        if isinstance(batch, Mapping):
            given: Any = next((batch[name] for name in _IDS if name in batch), None)
            rest = {k: v for k, v in batch.items() if k not in (*_IDS, *_TARGETS)}
            args, kwargs = ((rest["x"],), {}) if "x" in rest else ((), rest)
            empty = not args and not kwargs
        elif isinstance(batch, tuple | list) and len(batch) > 1:
            given, args, kwargs, empty = batch[-1], (batch[0],), {}, False
        else:
            given, args, kwargs, empty = None, (), {}, True
        ids = given.tolist() if isinstance(given, np.ndarray) else given
        if not isinstance(ids, list | tuple) or not all(isinstance(each, str) for each in ids):
            what = f"has ids of type {type(ids).__name__}" if ids is not None else "has no ids"
            raise InputError(f"`loader`: a batch ({type(batch).__name__}) {what}; {_WANTED}")
        if empty:
            raise InputError(f"`loader`: a batch has ids alone; {_WANTED}")
        cpu = torch.device("cpu")
        return cls([str(each) for each in ids], _moved(args, cpu), _moved(kwargs, cpu))

    def run(self, net: nn.Module, device: torch.device) -> None:
        """Call a network with the batch, on a device."""
        net(*_moved(self.args, device), **_moved(self.kwargs, device))

    def digests(self) -> list[str]:
        """Return the SHA-256 of each segment: its id, and its part of every tensor.

        Raises:
            InputError: a tensor has another number of segments than there are ids.
        """
        named = {**{str(n): value for n, value in enumerate(self.args)}, **self.kwargs}
        leaves = [leaf for name in sorted(named) for leaf in _leaves(name, named[name])]
        for _, leaf in leaves:
            if isinstance(leaf, Tensor) and len(leaf) != len(self.ids):
                raise InputError(
                    f"`loader`: a batch has {len(self.ids)} ids, and a tensor of "
                    f"{tuple(leaf.shape)}; wanted one id for each segment"
                )
        digests = []
        for row, clip_id in enumerate(self.ids):
            total = sha256(f"{clip_id}\0".encode())
            for name, leaf in leaves:
                if isinstance(leaf, Tensor):
                    part = leaf[row].contiguous()
                    total.update(f"{name}\0{part.dtype}\0{tuple(part.shape)}\0".encode())
                    total.update(part.reshape(-1).view(torch.uint8).numpy().data)
                else:
                    total.update(f"{name}\0{leaf!r}\0".encode())
            digests.append(total.hexdigest())
        return digests


def _leaves(name: str, value: object) -> Iterator[tuple[str, object]]:
    """Yield the tensors of a structure, in host memory, and its other values."""
    if isinstance(value, Tensor) and value.ndim:
        yield name, value.detach().cpu()
    elif isinstance(value, Mapping):
        for key in sorted(value):
            yield from _leaves(f"{name}.{key}", value[key])
    elif isinstance(value, tuple | list):
        for number, each in enumerate(value):
            yield from _leaves(f"{name}.{number}", each)
    else:
        yield name, value


def _moved(value: Any, device: torch.device) -> Any:  # noqa: ANN401
    """Return a structure of tensors on a device; arrays of numpy become tensors."""
    if isinstance(value, np.ndarray):
        value = torch.from_numpy(value)
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, Mapping):
        return {name: _moved(each, device) for name, each in value.items()}
    if type(value) in (tuple, list):
        return type(value)(_moved(each, device) for each in value)
    return value
