"""Set the precision of a network's arithmetic: ``32`` (float32), ``tf32`` or ``bf16``."""

from __future__ import annotations

import torch

from antigram.model.choices import Precision

__all__ = ["autocast", "set_precision"]


def set_precision(precision: Precision) -> None:
    """Use TF32 for matrix products and convolutions on GPUs, or full float32 for ``32``."""
    full = precision == "32"
    torch.backends.cuda.matmul.allow_tf32 = not full
    torch.backends.cudnn.allow_tf32 = not full


def autocast(device: torch.device, precision: Precision) -> torch.autocast:
    """Return a context in which networks run in bfloat16 for ``bf16``; otherwise a no-op."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16")
