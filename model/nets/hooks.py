"""Watch the outputs of modules of any network, by the modules' names."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from antigram.pipeline.errors import InputError

__all__ = ["OnMaps", "as_maps", "check_names", "modules_by_name", "watch"]

# Called with a module's name and its output as maps (batch, channel, height, width).
OnMaps = Callable[[str, Tensor], None]

# Names under which torch's wrappers (DataParallel, DistributedDataParallel, torch.compile, FSDP)
# hold the wrapped module.
_WRAPPERS: tuple[tuple[type[nn.Module], str], ...] = (
    (nn.DataParallel, "module"),
    (nn.parallel.DistributedDataParallel, "module"),
)
_WRAPPED = ("_orig_mod", "_fsdp_wrapped_module")
# 3-d outputs of these are (batch, channel, position), those of all others (batch, token, channel).
_CHANNEL_SECOND = (
    nn.Conv1d,
    nn.ConvTranspose1d,
    nn.BatchNorm1d,
    nn.InstanceNorm1d,
    nn.MaxPool1d,
    nn.AvgPool1d,
    nn.AdaptiveAvgPool1d,
    nn.AdaptiveMaxPool1d,
)
# The shape of their output is that of their input.
_SAME_SHAPE = (nn.ReLU, nn.LeakyReLU, nn.ELU, nn.GELU, nn.SiLU, nn.Tanh, nn.Dropout, nn.Dropout1d)
# Whether an output was overwritten after the hook, by module and by its training flag.
_OVERWRITTEN: WeakKeyDictionary[nn.Module, dict[bool, bool]] = WeakKeyDictionary()


@contextmanager
def watch(net: nn.Module, names: Iterable[str], on_tap: OnMaps) -> Iterator[None]:
    """Call a function with the output of named modules during each forward pass in the block.

    The function is called as soon as a module has run, so that what it computes does not depend on
    later modules, and its part of the autograd graph is freed early in the backward pass. If later
    operations overwrite an output in place (a ReLU, ``out += x``), the network goes on with a copy,
    so that gradients are right and maps may be kept. Whether a copy is needed is learned in the
    first pass, which always copies. If the network overwrites an output only later on, PyTorch
    reports it in the backward pass.

    A network that was compiled with `torch.compile` runs uncompiled within the block, as compiled
    code does not call hooks that were added later.

    Args:
        net: any network. The wrappers of DistributedDataParallel, DataParallel and torch.compile
            are looked through: names are those of the wrapped network.
        names: names of modules, as in ``net.named_modules()``.
        on_tap: called with a module's name and its maps, ``(batch, channel, height, width)``, in
            the order in which the modules run. See `as_maps` for outputs of other shapes.

    Raises:
        InputError: there is no module of a name; an output cannot be taken as maps; a module runs
            more than once in a forward pass, or not at all before the block ends; or the network is
            a DataParallel of several devices, which would call ``on_tap`` from several threads.
    """
    if isinstance(net, nn.DataParallel) and len(net.device_ids) > 1:
        raise InputError(
            "a DataParallel of several devices runs its layers in threads, each on a part of the "
            "batch: use DistributedDataParallel"
        )
    modules = modules_by_name(net)
    wanted = check_names(net, names)
    counts = dict.fromkeys(wanted, 0)
    runs: dict[str, int] = dict(counts)
    written: list[tuple[nn.Module, bool, Tensor]] = []

    def learn() -> None:
        for module, training, copied in written:
            # A copy begins with version 0; each operation in place on it adds one.
            known = _OVERWRITTEN.setdefault(module, {})
            known[training] = known.get(training, False) or copied._version > 0
        written.clear()

    def begin(*_: object) -> None:
        learn()
        runs.update(counts)

    def hook(name: str, module: nn.Module, _: object, output: Any) -> Any:  # noqa: ANN401
        runs[name] += 1
        if runs[name] > 1:
            raise InputError(
                f"`layers` {name!r}: this module runs more than once in a forward pass (or again "
                "in the backward pass, with gradient checkpointing), so that its output is not "
                "unique. Name a module that runs once, such as the one around it"
            )
        on_tap(name, as_maps(output, name, module))
        if not _OVERWRITTEN.get(module, {}).get(module.training, True):
            return None
        changed, copied = _copied(output)
        if copied is not None:
            written.append((module, module.training, copied.detach()))
        return changed

    with ExitStack() as stack:
        stack.enter_context(_uncompiled())
        root = _unwrapped(net)
        stack.callback(root.register_forward_pre_hook(begin).remove)
        for name in wanted:
            stack.callback(modules[name].register_forward_hook(partial(hook, name)).remove)
        yield
        learn()
        if silent := [name for name in wanted if not runs[name]]:
            raise InputError(
                f"`layers` {silent[0]!r}: this module did not run, so that it has no output; name "
                "one that the forward pass calls"
            )


def modules_by_name(net: nn.Module) -> Mapping[str, nn.Module]:
    """Return the modules of a network by name, without the prefixes of torch's wrappers.

    Args:
        net: any network; it has no name itself and is left out.
    """
    found: dict[str, nn.Module] = {}
    for name, module in _unwrapped(net).named_modules(remove_duplicate=False):
        plain = ".".join(part for part in name.split(".") if part not in _WRAPPED)
        if plain:
            found.setdefault(plain, module)  # of a wrapper inside the network, which has its hooks
    return found


def check_names(net: nn.Module, names: Iterable[str]) -> tuple[str, ...]:
    """Return names of modules without duplicates, in their order; see `modules_by_name`.

    Raises:
        InputError: the network has no module of a name; the message lists close ones.
    """
    known = modules_by_name(net)
    for name in (wanted := tuple(dict.fromkeys(names))):
        if name in known:
            continue
        close = difflib.get_close_matches(name, known, n=5, cutoff=0.5)
        close += [other for other in known if name and name in other and other not in close][:5]
        hint = f"close names: {', '.join(close)}" if close else f"it has {', '.join(known):.300}"
        raise InputError(
            f"`layers` {name!r}: {type(_unwrapped(net)).__name__} has no module of this name; "
            f"{hint}"
        )
    return wanted


def as_maps(output: object, name: str, module: nn.Module | None = None) -> Tensor:
    """Return the output of a module as maps.

    Args:
        output: a tensor; or a tuple, list or mapping (the outputs of recurrent layers and of
            Hugging Face's models) whose first element is one. A tensor of four dimensions is taken
            as it is. One of three is ``(batch, token, channel)``; of a one-dimensional
            convolution, batch norm or pooling, ``(batch, channel, position)``; and of a recurrent
            or attention layer without ``batch_first``, ``(token, batch, channel)``.
        name: name of the module, for the message.
        module: the module itself; by default one of none of these kinds.

    Returns:
        ``(batch, channel, height, width)``; of three dimensions, ``(batch, channel, token, 1)``.

    Raises:
        InputError: the output is no tensor of three or four dimensions of floating-point numbers.
    """
    first = _first(output)
    if isinstance(first, Tensor) and first.is_floating_point():
        if first.ndim == 4:
            return first
        if first.ndim == 3:
            if _is_channel_second(module):
                return first[..., None]
            return first.permute((1, 2, 0) if _is_batch_second(module) else (0, 2, 1))[..., None]
        got = f"the shape {tuple(first.shape)}"
    else:
        kind = f"a tensor of {first.dtype}" if isinstance(first, Tensor) else type(first).__name__
        got = f"the type {kind}"
    of = "" if module is None else f" ({type(module).__name__})"
    raise InputError(
        f"`layers` {name!r}{of}: its output has {got}; wanted maps (batch, channel, height, width) "
        "or (batch, token, channel) of floating-point numbers. Name another module"
    )


def _first(output: object) -> object:
    """Return the first element of nested tuples, lists or mappings, else the object itself."""
    while not isinstance(output, PackedSequence):
        if isinstance(output, Mapping):
            output = next(iter(output.values()), None)
        elif isinstance(output, tuple | list):
            output = output[0] if output else None
        else:
            break
    return output


def _copied(output: object) -> tuple[object, Tensor | None]:
    """Return an output whose first tensor is a copy, and the copy; None twice if impossible.

    Other classes than plain tensors, tuples and lists are not built anew.
    """
    if isinstance(output, Tensor):
        copied = output.clone()
        return copied, copied
    if isinstance(output, tuple | list) and type(output) in (tuple, list) and output:
        changed, of_first = _copied(output[0])
        if of_first is not None:
            return type(output)([changed, *output[1:]]), of_first
    return None, None


def _is_channel_second(module: nn.Module | None) -> bool:
    """Return whether outputs of three dimensions have their channels before their positions."""
    while isinstance(module, nn.Sequential) and len(module):
        # What is behind a convolution and changes no shape does not hide it.
        shaping = (each for each in reversed(module) if not isinstance(each, _SAME_SHAPE))
        module = next(shaping, None)
    return isinstance(module, _CHANNEL_SECOND)


def _is_batch_second(module: nn.Module | None) -> bool:
    """Return whether outputs of three dimensions begin with the tokens instead of the batch."""
    while isinstance(module, nn.TransformerEncoder | nn.TransformerDecoder | nn.Sequential):
        layers = module if isinstance(module, nn.Sequential) else module.layers
        if not len(layers):
            return False
        module = layers[-1]
    if isinstance(module, nn.TransformerEncoderLayer | nn.TransformerDecoderLayer):
        module = module.self_attn
    kinds = (nn.RNNBase, nn.MultiheadAttention)
    return isinstance(module, kinds) and not module.batch_first


def _unwrapped(net: nn.Module) -> nn.Module:
    """Return the network inside torch's wrappers."""
    while True:
        names = [name for kind, name in _WRAPPERS if isinstance(net, kind)]
        names += [name for name in _WRAPPED if name in net._modules]
        if not names:
            return net
        net = net.get_submodule(names[0])


def _uncompiled() -> Any:  # noqa: ANN401 - torch's context manager has no name
    """Return a context manager in which compiled code runs as it was written."""
    # Nothing is compiled unless torch has loaded its compiler, which takes seconds.
    if "torch._dynamo" not in sys.modules:
        return nullcontext()
    return torch.compiler.set_stance("force_eager")
