"""Find a torch device by its name."""

from __future__ import annotations

import torch

from antigram.pipeline.errors import InputError

__all__ = ["named_device"]


def named_device(name: str) -> torch.device:
    """Return the device with a name; a missing device is an error, and no other device is used.

    Args:
        name: ``cpu``, ``cuda``, ``cuda:1``, or ``auto``: the GPU if there is one, else the CPU.

    Raises:
        InputError: there is no such device.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise InputError(f"`device` {name!r}: wanted cpu, cuda, cuda:1 or auto") from None
    if device.type not in ("cpu", "cuda"):
        raise InputError(f"`device` {name!r}: wanted cpu, cuda, cuda:1 or auto")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise InputError(f"`device` {name}: there is no such GPU; `device=cpu` works everywhere")
    return device
