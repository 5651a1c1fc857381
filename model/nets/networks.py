"""Build networks by name, list their layers, and find what a layer depends on.

Shapes and dependencies are found by running a network without data, on PyTorch's meta device; a
user's own network that cannot run there is run on a segment of zeros.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from antigram.model.choices import Init, Layer, Tap
from antigram.model.nets.arch import Arch
from antigram.model.nets.ast import ast
from antigram.model.nets.backbone import Backbone, Named
from antigram.model.nets.cnn14 import cnn14
from antigram.model.nets.crnn import crnn
from antigram.model.nets.hooks import as_maps, modules_by_name, watch
from antigram.model.nets.own import build_own
from antigram.model.nets.vgg import Vgg
from antigram.pipeline.errors import InputError

__all__ = [
    "LayerShape",
    "body_state",
    "build_net",
    "check_network",
    "deepest_layer",
    "empty_net",
    "extractor_digest",
    "layer_shapes",
    "main_layers",
    "map_shape",
    "tap_shape",
    "tensors_below",
]


def _torchvision(arch: Arch, classes: int, dropout: float) -> nn.Module:
    from antigram.model.nets import torchvision_nets  # imports torchvision, which takes a second

    kind = "resnet" if arch.name.startswith("resnet") else arch.name
    net: nn.Module = getattr(torchvision_nets, kind)(arch, classes, dropout)
    return net


_TORCHVISION = ("resnet18", "resnet34", "resnet50", "convnext_tiny", "efficientnet_b0")
_BUILDERS: dict[str, Callable[[Arch, int, float], nn.Module]] = {
    **dict.fromkeys(_TORCHVISION, _torchvision),
    "cnn14": cnn14,
    "crnn": crnn,
    "ast": ast,
}
_CLASSES = 2  # of a network that is built to look at its layers
_DRAWING = {Tensor.normal_, Tensor.uniform_}
_COUNTS = "num_batches_tracked"  # of a batch norm; no number in eval mode depends on it


def build_net(
    arch: Arch,
    classes: int,
    shape: tuple[int, int] = (0, 0),
    dropout: float = 0.5,
    init: Init = "scaled",
) -> Backbone:
    """Build a network with initial weights, from torch's global random generator.

    Args:
        arch: name and width.
        classes: number of outputs. 0 leaves out the classifier of a VGG, which a teacher does not
            need.
        shape: ``(frame, freq)`` of a segment, which a user's own network may depend on.
        dropout: dropout probability before linear layers.
        init: initial weights of a VGG's linear layers: see `Vgg`.

    Raises:
        InputError: the network is a user's own, and its file was not named; or it failed.
    """
    if arch.numbered:
        return Vgg(arch, classes, dropout, init)
    if arch.source:
        return Named(build_own(arch, classes, shape, dropout), arch, shape)
    return Named(_BUILDERS[arch.name](arch, classes, dropout), arch, shape)


def empty_net(arch: Arch, classes: int, shape: tuple[int, int] = (0, 0)) -> Backbone:
    """Build a network without weights, on the meta device; draws no random number.

    A user's own network that cannot be built there is built with weights.

    Raises:
        InputError: as for `build_net`.
    """
    with torch.random.fork_rng(devices=[]):
        try:
            with torch.device("meta"), _NothingDrawn():
                return build_net(arch, classes, shape)
        except (RuntimeError, NotImplementedError, TypeError, ValueError):
            if not arch.source:
                raise
            return build_net(arch, classes, shape)


class _NothingDrawn(TorchFunctionMode):
    """A block in which random numbers are not drawn into tensors of the meta device.

    These have no numbers. torch would load its compiler for it, which takes a second.
    """

    def __torch_function__(
        self,
        func: Any,  # noqa: ANN401 - torch has no public type for it
        types: Sequence[type],
        args: Any = (),  # noqa: ANN401
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401
        """Run a function, unless it draws numbers into a tensor."""
        del types
        # torch.nn.init's functions arrive here themselves, and what they call does not.
        if func in _DRAWING or getattr(func, "__module__", "") == nn.init.__name__:
            tensor: Tensor = args[0] if args else (kwargs or {})["tensor"]
            if tensor.is_meta:
                return tensor
        return func(*args, **(kwargs or {}))


@contextmanager
def _dry(arch: Arch, shape: tuple[int, int]) -> Iterator[tuple[Backbone, Tensor]]:
    """Yield a network in eval mode and its input of one segment, as `_empty` finds them."""
    net, x = _empty(arch, shape)
    with torch.enable_grad(), torch.autocast("cpu", enabled=False):
        yield net, x


@lru_cache(maxsize=16)
def _empty(arch: Arch, shape: tuple[int, int]) -> tuple[Backbone, Tensor]:
    """Return a network in eval mode, and a segment that it can run: without data if possible."""
    classes = 0 if arch.numbered else _CLASSES
    net = empty_net(arch, classes, shape).eval().requires_grad_()
    device = next(net.parameters(), torch.empty(0)).device
    x = torch.zeros(1, 1, *shape, device=device)
    if arch.numbered:
        return net, x
    try:
        with torch.no_grad():
            logits = net(x)
        if logits.shape[1] != classes:
            raise InputError(
                f"`arch` {arch.name}: returns {logits.shape[1]} numbers for a segment and "
                f"{classes} classes; wanted one for each class"
            )
    except InputError:
        raise
    except Exception as error:  # noqa: BLE001 - a user's own code may raise anything
        if arch.source and device.type == "meta":
            with torch.random.fork_rng(devices=[]):
                net = build_net(arch, classes, shape).eval().requires_grad_()
            x = torch.zeros(1, 1, *shape)
            with suppress(Exception), torch.no_grad():
                net(x)
                return net, x
        raise InputError(
            f"`arch` {arch.name}: cannot take segments of {shape[0]} frames x {shape[1]} "
            f"frequencies: {' '.join(str(error).split())[:300]}"
        ) from None
    return net, x


def check_network(arch: Arch, shape: tuple[int, int]) -> None:
    """Raise if a network cannot take segments of a shape, or does not return logits.

    Args:
        arch: name and width.
        shape: ``(frame, freq)`` of a segment.

    Raises:
        InputError: the network fails; the message says why.
    """
    if not arch.numbered:
        _empty(arch, shape)


@lru_cache(maxsize=256)
def map_shape(arch: Arch, layer: Layer, tap: Tap, shape: tuple[int, int]) -> tuple[int, int, int]:
    """Return the number of channels, frames and frequencies of a layer's maps at a tap.

    Args:
        arch: architecture of the network.
        layer: number of a convolution layer or name of a module, as in `Backbone.run_features`.
        tap: as in `Backbone.run_features`.
        shape: ``(frame, freq)`` of a segment.

    Raises:
        InputError: the network has no such layer or tap.
    """
    shapes: list[tuple[int, int, int]] = []
    with _dry(arch, shape) as (net, x), torch.no_grad():
        net.run_features(
            x,
            [layer],
            tap,
            lambda _layer, maps: shapes.append((maps.shape[1], maps.shape[2], maps.shape[3])),
            stop=True,
        )
    return shapes[0]


def tap_shape(arch: Arch, layer: Layer, tap: Tap, shape: tuple[int, int]) -> tuple[int, int]:
    """Return the number of channels and positions of a layer's maps at a tap: see `map_shape`."""
    channels, frames, freqs = map_shape(arch, layer, tap, shape)
    return channels, frames * freqs


@dataclass(frozen=True, slots=True)
class LayerShape:
    """A module whose output can be tapped.

    Attributes:
        layer: its name, or the number of a VGG's convolution layer.
        kind: class of the module.
        channels: channels of its maps.
        size: frames and frequencies of its maps; tokens and 1 for a sequence of tokens.
    """

    layer: Layer
    kind: str
    channels: int
    size: tuple[int, int]


def layer_shapes(arch: Arch, shape: tuple[int, int]) -> list[LayerShape]:
    """Return the layers of a network that can be tapped, in the order in which they run.

    Args:
        arch: name and width.
        shape: ``(frame, freq)`` of a segment.

    Returns:
        The numbered layers of a VGG, after their ReLU; of other networks all modules whose output
        can be taken as maps and which run once.

    Raises:
        InputError: the network cannot take such segments.
    """
    if arch.numbered:
        taps = ((n, map_shape(arch, n, "relu", shape)) for n in range(1, arch.layers + 1))
        return [LayerShape(n, "Conv2d", size[0], size[1:]) for n, size in taps]
    return list(_named_shapes(arch, shape))


@lru_cache(maxsize=16)
def _named_shapes(arch: Arch, shape: tuple[int, int]) -> tuple[LayerShape, ...]:
    found: dict[str, LayerShape | None] = {}

    def hook(name: str, module: nn.Module, output: object) -> None:
        again = name in found
        found.setdefault(name, None)
        with suppress(InputError):
            maps = as_maps(output, name, module)
            size = (maps.shape[2], maps.shape[3])
            layer = LayerShape(name, type(module).__name__, maps.shape[1], size)
            found[name] = None if again else layer

    with _dry(arch, shape) as (net, x), ExitStack() as stack, torch.no_grad():
        assert isinstance(net, Named)
        for name, module in modules_by_name(net.net).items():

            def on_output(module: nn.Module, _: object, output: object, name: str = name) -> None:
                hook(name, module, output)

            stack.callback(module.register_forward_hook(on_output).remove)
        net(x)
    return tuple(layer for layer in found.values() if layer is not None)


def main_layers(arch: Arch, shape: tuple[int, int]) -> tuple[Layer, ...]:
    """Return the layers that ``all`` stands for.

    Args:
        arch: name and width.
        shape: ``(frame, freq)`` of a segment.

    Returns:
        The numbered layers of a VGG. Of other networks the modules that have weights and more than
        one position, and are in no other module but lists of modules (nn.Sequential,
        nn.ModuleList, nn.ModuleDict), in the order in which they run.

    Raises:
        InputError: no layer of the network can be tapped, or as for `layer_shapes`.
    """
    if arch.numbered:
        return tuple(range(1, arch.layers + 1))
    with _dry(arch, shape) as (net, _):
        assert isinstance(net, Named)
        blocks = set(_blocks(net.net))
    known = (each for each in layer_shapes(arch, shape) if each.size != (1, 1))
    layers = [each.layer for each in known if each.layer in blocks]
    if not layers:
        raise InputError(
            f"`arch` {arch.name}: no module with weights has maps for output: name a layer"
        )
    return tuple(layers)


def _blocks(module: nn.Module, prefix: str = "") -> Iterator[str]:
    """Yield the names of modules with weights, looking into lists of modules only."""
    for name, child in module.named_children():
        if isinstance(child, nn.Sequential | nn.ModuleList | nn.ModuleDict):
            yield from _blocks(child, f"{prefix}{name}.")
        elif any(True for _ in child.parameters()):
            yield f"{prefix}{name}"


def deepest_layer(arch: Arch, shape: tuple[int, int]) -> Layer:
    """Return the last of `main_layers`."""
    return main_layers(arch, shape)[-1]


def tensors_below(net: Named, layer: Layer) -> tuple[str, ...]:
    """Return the names of the tensors that a layer's maps depend on, in the state dict's order.

    These are the parameters from which autograd has computed the maps, and the buffers of modules
    that had begun to run before them.

    Raises:
        InputError: the network has no such layer.
    """
    return _tensors_below(net.arch, net.shape, str(layer))


@lru_cache(maxsize=256)
def _tensors_below(arch: Arch, shape: tuple[int, int], layer: str) -> tuple[str, ...]:
    begun: set[str] = set()
    used: set[int] = set()
    with _dry(arch, shape) as (net, x), ExitStack() as stack:
        assert isinstance(net, Named)

        def on_tap(_: str, maps: Tensor) -> None:
            used.update(_leaves(maps))
            held.update(f"{name}.{key}" for name in begun for key in buffers.get(name, ()))
            held.update(buffers_of_root)

        held: set[str] = set()
        buffers = {
            name: [key for key in module._buffers if key != _COUNTS]
            for name, module in net.net.named_modules()
        }
        buffers_of_root = buffers.pop("", [])
        for name, module in net.net.named_modules():

            def on_begin(*_: object, name: str = name) -> None:
                begun.add(name)

            stack.callback(module.register_forward_pre_hook(on_begin).remove)
        stack.enter_context(watch(net.net, [layer], on_tap))
        net(x)
        parameters = dict(net.net.named_parameters(remove_duplicate=False))
        return tuple(
            name
            for name in net.state_dict()
            if name in held or (name in parameters and id(parameters[name]) in used)
        )


def _leaves(maps: Tensor) -> Iterator[int]:
    """Yield the ids of the leaf tensors from which autograd has computed maps."""
    nodes: list[Any] = [maps.grad_fn]
    seen = set()
    while nodes:
        node = nodes.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            yield id(node.variable)
        nodes += [following for following, _ in node.next_functions]


def extractor_digest(state: Mapping[str, Tensor], net: Backbone, layer: Layer, tap: Tap) -> str:
    """Return the SHA-256 over name, dtype, shape and little-endian bytes of tensors up to a tap.

    Args:
        state: state dict of the network.
        net: the network, with or without weights.
        layer: as in `Backbone.run_features`.
        tap: as in `Backbone.run_features`.
    """
    if isinstance(net, Vgg):
        names: Collection[str] = [name for name in net.names_below(layer, tap) if name in state]
    else:
        assert isinstance(net, Named)
        names = tensors_below(net, layer)
    total = hashlib.sha256()
    for name in names:
        array: np.ndarray[Any, Any] = state[name].detach().cpu().contiguous().numpy()
        little = array.astype(array.dtype.newbyteorder("<"), copy=False)
        total.update(f"{name}\0{array.dtype.name}\0{array.shape}\0".encode())
        total.update(little.tobytes())
    return total.hexdigest()


def body_state(
    arch: Arch, state: Mapping[str, Tensor], classes: int, shape: tuple[int, int]
) -> dict[str, Tensor]:
    """Return the entries of a state dict that do not belong to the classifier.

    Args:
        arch: name and width of the network.
        state: its state dict.
        classes: number of its outputs.
        shape: ``(frame, freq)`` of the segments that it was built for.
    """
    return empty_net(arch, classes, shape).body(state)
