"""A teacher that antigram did not train: any module, whose named modules are watched."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable, Collection

import torch
from torch import Tensor, nn

from antigram.model.choices import Layer, Tap
from antigram.model.nets.arch import EXTERNAL, OWN, Arch
from antigram.model.nets.backbone import Named
from antigram.model.nets.hooks import watch
from antigram.model.nets.pretrained import PRETRAINED, pretrained
from antigram.model.nets.user_code import function_of, source_digest
from antigram.pipeline.errors import InputError

__all__ = ["External", "external_arch", "external_net", "module_digest"]

_VARIABLE = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


class External(Named):
    """A module that need not return logits, run for the maps of its layers alone.

    Args:
        net: takes ``(segment, 1, frame, freq)``, or audio ``(segment, sample)``.
        arch: from `external_arch`.
    """

    def __init__(self, net: nn.Module, arch: Arch) -> None:
        super().__init__(net, arch, (0, 0))

    def forward(
        self,
        x: Tensor,
        layers: Collection[Layer] = (),
        tap: Tap = "relu",
        on_tap: Callable[[Layer, Tensor], None] = lambda _layer, _maps: None,
        on_features: Callable[[Tensor], None] | None = None,
    ) -> Tensor:
        """Run the network and call ``on_tap`` at ``layers``: see `Backbone`; return the input."""
        del on_features
        self.set_tap(tap)
        with watch(self.net, map(str, layers), on_tap):
            self.net(x)
        return x


def external_arch(text: str) -> Arch:
    """Return the identity of a teacher's code; that of its weights is `module_digest`.

    Args:
        text: one of `PRETRAINED`, or ``FILE.py:function``.

    Raises:
        InputError: there is no such network, or the file cannot be read.
    """
    if OWN in text:
        path, function, digest = source_digest(text, "teacher")
        return Arch(f"{EXTERNAL}{path.name}:{function}", source=digest)
    version = PRETRAINED[text].version if text in PRETRAINED else ""
    digest = hashlib.sha256(f"{text}/{version}".encode()).hexdigest()
    return Arch(f"{EXTERNAL}{text}", source=digest)


def external_net(text: str) -> nn.Module:
    """Build the network of a teacher, frozen and in eval mode.

    Args:
        text: one of `PRETRAINED`, or ``FILE.py:function``. The function is called without
            arguments and returns a module. If the module has an attribute ``sample_rate`` (in Hz),
            it takes audio ``(segment, sample)`` at this rate, else the stored features
            ``(segment, 1, frame, freq)``. An attribute ``layers`` (names of modules) says what
            ``all`` stands for.

    Raises:
        InputError: the network is not known or not installed; or the file, the function or what it
            returns is not as described.
    """
    if OWN not in text:
        return pretrained(text).eval().requires_grad_(requires_grad=False)
    function = function_of(text, "teacher")
    parameters = inspect.signature(function).parameters.values()
    needed = [p.name for p in parameters if p.default is p.empty and p.kind not in _VARIABLE]
    if needed:
        raise InputError(
            f"`teacher` {text}: the function has the parameter {needed[0]}; it is called without "
            "arguments"
        )
    try:
        net = function()
    except Exception as error:
        raise InputError(
            f"`teacher` {text}: the function failed: {type(error).__name__}: "
            f"{' '.join(str(error).split())[:300]}"
        ) from error
    if not isinstance(net, nn.Module):
        raise InputError(
            f"`teacher` {text}: the function returned {type(net).__name__}; wanted a module"
        )
    rate, layers = getattr(net, "sample_rate", None), getattr(net, "layers", ())
    if rate is not None and (not isinstance(rate, int) or not 1000 <= rate <= 768_000):
        raise InputError(
            f"`teacher` {text}: its sample_rate is {rate!r}; wanted a number of Hz, or none"
        )
    names = isinstance(layers, list | tuple) and all(isinstance(name, str) for name in layers)
    if not names and not isinstance(layers, nn.Module):  # which is a child of this name
        raise InputError(
            f"`teacher` {text}: its layers are {layers!r:.60}; wanted a list of names of modules"
        )
    return net.eval().requires_grad_(requires_grad=False)


def module_digest(net: nn.Module) -> str:
    """Return the SHA-256 over name, dtype, shape and bytes of all tensors of a network's state."""
    total = hashlib.sha256()
    for name, tensor in net.state_dict().items():
        if isinstance(tensor, Tensor):
            plain = tensor.detach().cpu().contiguous().reshape(-1)
            total.update(f"{name}\0{plain.dtype}\0{tuple(tensor.shape)}\0".encode())
            total.update(plain.view(torch.uint8).numpy().data)
    return total.hexdigest()
