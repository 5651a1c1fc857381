"""List the layers of a network at which student and teacher can be compared."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from antigram.pipeline.features.store import FeatureStore
from antigram.pipeline.workspace import Workspace

__all__ = ["layers_text", "list_layers"]

_SECOND = (126, 129)  # frames and frequencies of a segment of one second


def list_layers(
    workspace: Workspace,
    *,
    arch: str | None = None,
    width: int | None = None,
    ckpt: Path | None = None,
    data: str | None = None,
) -> dict[str, Any]:
    """List the layers of a network that can be compared, without running it on data.

    Args:
        workspace: holds the store.
        arch: name of a network, or ``FILE.py:function``; default: that of ``ckpt``, or vgg16.
        width: width of the network; default: that of ``ckpt``, or 64.
        ckpt: checkpoint whose network is listed.
        data: name of the store whose segments it takes; default: segments of one second.

    Returns:
        ``arch`` {name, width}, ``input`` [frame, freq], ``parameters``, ``deepest``, and
        ``layers``: a list, in the order in which they run, of {layer, kind, channels, size,
        positions, main}; ``size`` is [frame, freq] of the maps, or [token, 1], and ``main`` says
        whether ``all`` includes the layer.

    Raises:
        InputError: an argument is unknown, or the network cannot take such segments.
        StoredDataError: the store or the checkpoint is damaged.
    """
    from antigram.model.nets.arch import OWN
    from antigram.model.nets.networks import empty_net, layer_shapes, main_layers
    from antigram.model.nets.own import named_arch, own_arch
    from antigram.model.training.checkpoint import open_teacher

    if OWN in (arch or ""):
        own_arch(str(arch))  # so that a checkpoint with this network can be opened
    network = named_arch(arch, width, None if ckpt is None else open_teacher(ckpt).arch)
    shape = _SECOND
    if data is not None:
        shape = FeatureStore(workspace.store(data, lambda _: None)).shape
    shapes, main = layer_shapes(network, shape), main_layers(network, shape)
    net = empty_net(network, 2, shape)
    return {
        "arch": network.to_json(),
        "input": list(shape),
        "parameters": sum(parameter.numel() for parameter in net.parameters()),
        "deepest": main[-1],
        "layers": [
            {
                "layer": each.layer,
                "kind": each.kind,
                "channels": each.channels,
                "size": list(each.size),
                "positions": each.size[0] * each.size[1],
                "main": each.layer in main,
            }
            for each in shapes
        ],
    }


def layers_text(content: Mapping[str, Any]) -> str:
    """Format the answer of ``layers``: a line for each layer; ``*`` marks those of ``all``."""
    frames, freqs = content["input"]
    arch = content["arch"]
    lines = [
        f"{arch['name']}, width {arch['width']}: {content['parameters']} parameters with two "
        f"classes; segments of {frames} frames x {freqs} frequencies",
        "all stands for those with *",
    ]
    rows = [("", "layer", "kind", "channels", "maps")]
    for each in content["layers"]:
        size = " x ".join(map(str, each["size"]))
        mark = "*" if each["main"] else ""
        rows.append((mark, str(each["layer"]), each["kind"], str(each["channels"]), size))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines += [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
    return "\n".join(lines)
