"""Backbones: networks from a spectrogram to logits, with layers that can be tapped."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from antigram.model.choices import Layer, Tap
from antigram.model.nets.arch import Arch
from antigram.model.nets.hooks import modules_by_name, watch
from antigram.pipeline.errors import InputError

__all__ = ["Backbone", "Head", "Named", "OnTap", "channels_last"]

# Called with a layer and its feature maps (batch, channel, frame, freq).
OnTap = Callable[[Layer, Tensor], None]


class _Enough(Exception):
    """Raised in the forward pass of a network whose deepest wanted layer has run."""


class Backbone(nn.Module, ABC):
    """A network from ``(batch, 1, frame, freq)`` to logits, with layers that can be tapped.

    `Vgg` taps its numbered layers between slices of the network; `Named` taps modules of any
    network by hooks.

    Attributes:
        arch: name and width.
        shape: ``(frame, freq)`` of the segments that the network was built for; ``(0, 0)`` if it
            takes segments of any size.
    """

    arch: Arch
    shape: tuple[int, int] = (0, 0)

    def __init__(self) -> None:
        super().__init__()
        self._frozen: list[nn.Module] = []

    @abstractmethod
    def set_tap(self, tap: Tap) -> None:
        """Keep later modules from overwriting the maps of a tap."""

    @abstractmethod
    def run_features(
        self, x: Tensor, layers: Collection[Layer], tap: Tap, on_tap: OnTap, *, stop: bool = False
    ) -> Tensor | None:
        """Run the network and call ``on_tap`` at each of ``layers``.

        Args:
            x: ``(batch, 1, frame, freq)``.
            layers: numbers of a VGG's convolution layers, or names of modules.
            tap: for numbers ``relu`` (the output of the layer's ReLU), ``conv`` (the input of that
                ReLU) or ``released`` (the input of the layer, as in the paper's code); for names
                ``relu``, which stands for the output of the module.
            on_tap: called during the forward pass with the layer and its maps. The backward pass
                then frees the part of the graph that it adds before it reaches the layers below.
            stop: whether to stop at the deepest tap.

        Raises:
            InputError: a layer or a tap is unknown, or its output cannot be taken as maps.
        """

    @abstractmethod
    def frozen_below(self, layer: Layer) -> tuple[list[nn.Parameter], list[nn.Module]]:
        """Return parameters that a layer depends on, and modules with statistics of their own."""

    @property
    @abstractmethod
    def head_sizes(self) -> tuple[int, int]:
        """Number of features that enter the classifier, and of those before its last layer."""

    @abstractmethod
    def strides(self, layer: Layer, shape: tuple[int, int]) -> tuple[int, int]:
        """Return how many frames and frequencies lie between two positions of a layer's maps.

        Args:
            layer: as in `run_features`.
            shape: ``(frame, freq)`` of a segment.
        """

    @abstractmethod
    def body(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the entries of a state dict that do not belong to the classifier."""

    def freeze_up_to(self, layer: Layer) -> None:
        """Switch off the gradients of the weights up to a layer, and keep batch norms as in eval.

        Args:
            layer: as in `run_features`; of a numbered layer, the convolution and its batch norm.
        """
        parameters, modules = self.frozen_below(layer)
        for parameter in parameters:
            parameter.requires_grad = False
        self._frozen += [module for module in modules if module not in self._frozen]
        self.train(self.training)

    def train(self, mode: bool = True) -> Backbone:  # noqa: FBT001, FBT002 - as torch declares it
        """Switch between training and eval mode; frozen batch norms stay in eval mode."""
        super().train(mode)
        for module in self._frozen:
            module.eval()
        return self


class Named(Backbone):
    """Any network as a `Backbone`: its modules are tapped by their names, with hooks.

    The state dict has the names of the network itself.

    Args:
        net: the network. It takes ``(batch, 1, frame, freq)`` and returns logits
            ``(batch, class)``.
        arch: its name and width.
        shape: ``(frame, freq)`` of a segment.
    """

    def __init__(self, net: nn.Module, arch: Arch, shape: tuple[int, int]) -> None:
        super().__init__()
        self.net, self.arch, self.shape = net, arch, shape

    def set_tap(self, tap: Tap) -> None:
        """Do nothing, as `watch` keeps maps from being overwritten.

        Raises:
            InputError: the tap is none of a named layer.
        """
        if tap != "relu":
            raise InputError(
                f"`tap={tap}`: is for the numbered layers of a VGG; a named layer of "
                f"{self.arch.name} is tapped at its output: leave `tap` out, and name the module "
                "whose output you want"
            )

    def run_features(
        self, x: Tensor, layers: Collection[Layer], tap: Tap, on_tap: OnTap, *, stop: bool = False
    ) -> Tensor | None:
        """Run the network: see `Backbone`; returns None if it stopped early."""
        left = set(layers)

        def count(name: Layer, maps: Tensor) -> None:
            on_tap(name, maps)
            left.discard(name)
            if stop and not left:
                raise _Enough

        try:
            return self.forward(x, layers, tap, count)
        except _Enough:
            return None

    def forward(
        self,
        x: Tensor,
        layers: Collection[Layer] = (),
        tap: Tap = "relu",
        on_tap: OnTap = lambda _layer, _maps: None,
        on_features: Callable[[Tensor], None] | None = None,
    ) -> Tensor:
        """Return logits ``(batch, class)`` of ``(batch, 1, frame, freq)``.

        Args:
            x: as in `run_features`.
            layers: as in `run_features`.
            tap: as in `run_features`.
            on_tap: as in `run_features`.
            on_features: called with the input of the last linear layer, ``(batch, feature)``.

        Raises:
            InputError: the output is no logits; or as for `watch`.
        """
        with ExitStack() as stack:
            if layers:
                self.set_tap(tap)
                stack.enter_context(watch(self.net, map(str, layers), on_tap))
            if on_features is not None:
                hook = partial(_hand_over, on_features)
                stack.callback(self._head()[1].register_forward_pre_hook(hook).remove)
            logits = self.net(x)
        # Not `len`, by which torch.export would take the size of a batch as a constant.
        if not isinstance(logits, Tensor) or logits.ndim != 2 or logits.shape[0] != x.shape[0]:
            got = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
            raise InputError(
                f"`arch` {self.arch.name}: returns {got} for {tuple(x.shape)}; wanted logits "
                "(segment, class)"
            )
        return logits

    def _head(self) -> tuple[str, nn.Linear]:
        """Return name and module of the last linear layer."""
        linear = [
            (name, module)
            for name, module in modules_by_name(self.net).items()
            if isinstance(module, nn.Linear)
        ]
        if not linear:
            raise InputError(
                f"`arch` {self.arch.name}: has no nn.Linear, so that its classifier is not known; "
                "let it end in one"
            )
        return linear[-1]

    @property
    def head_sizes(self) -> tuple[int, int]:
        """Input size of the last linear layer, twice: see `Backbone`."""
        size = self._head()[1].in_features
        return size, size

    def strides(self, layer: Layer, shape: tuple[int, int]) -> tuple[int, int]:
        """Return the size of a segment over that of the maps, rounded: see `Backbone`.

        Raises:
            InputError: the layer gives tokens, which have no frequencies.
        """
        from antigram.model.nets.networks import map_shape

        _, height, width = map_shape(self.arch, layer, "relu", shape)
        if width == 1:
            raise InputError(
                f"`layers` {layer}: gives {height} tokens, which cannot be drawn over a "
                "spectrogram; name a layer whose maps have frames and frequencies"
            )
        return max(1, round(shape[0] / height)), max(1, round(shape[1] / width))

    def body(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return all entries but those of the last linear layer."""
        prefix = f"{self._head()[0]}."
        return {name: tensor for name, tensor in state.items() if not name.startswith(prefix)}

    def frozen_below(self, layer: Layer) -> tuple[list[nn.Parameter], list[nn.Module]]:
        """See `Backbone`; the layers that run before the named one, and that one."""
        from antigram.model.nets.networks import tensors_below

        names = tensors_below(self, layer)
        of_name = dict(self.net.named_parameters(remove_duplicate=False))
        owners = {name.rpartition(".")[0] for name in names if name not in of_name}
        modules = [module for name, module in self.net.named_modules() if name in owners]
        return [of_name[name] for name in names if name in of_name], modules

    def state_dict(  # type: ignore[override]  # torch declares overloads
        self,
        *args: Any,  # noqa: ANN401
        **kwargs: Any,  # noqa: ANN401
    ) -> dict[str, Any]:
        """Return the state dict of the network itself."""
        state: dict[str, Any] = self.net.state_dict(*args, **kwargs)
        return state

    def load_state_dict(
        self,
        state_dict: Mapping[str, Any],
        strict: bool = True,  # noqa: FBT001, FBT002 - as torch declares it
        assign: bool = False,  # noqa: FBT001, FBT002
    ) -> Any:  # noqa: ANN401
        """Load a state dict of the network itself."""
        return self.net.load_state_dict(state_dict, strict, assign)


def _hand_over(
    on_features: Callable[[Tensor], None], _module: nn.Module, given: Sequence[Tensor]
) -> None:
    if (features := given[0]).ndim != 2:
        raise InputError(
            f"the last linear layer takes {tuple(features.shape)}; `mode=dann` and `mode=coral` "
            "want (segment, feature) there: let the network average before it"
        )
    on_features(features)


class Head(nn.Linear):
    """A last linear layer, with dropout before it.

    Args:
        inputs: number of features.
        classes: number of outputs.
        dropout: dropout probability of the features.
    """

    def __init__(self, inputs: int, classes: int, dropout: float) -> None:
        super().__init__(inputs, classes)
        self.dropout = dropout

    def forward(self, x: Tensor) -> Tensor:
        """Return ``(..., class)`` of ``(..., feature)``."""
        return super().forward(functional.dropout(x, self.dropout, self.training))


def channels_last(net: Backbone) -> Backbone:
    """Change the memory format of a network's convolution weights to channels last.

    The weights are replaced by new parameters, as tensors on the meta device cannot change their
    format. So create an optimiser after this call.

    Returns:
        The same network.
    """
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            weight = module.weight.detach().to(memory_format=torch.channels_last)
            module.weight = nn.Parameter(weight, requires_grad=module.weight.requires_grad)
    return net
