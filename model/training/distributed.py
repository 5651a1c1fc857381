"""Rank, world size and collectives of a job that torchrun started; no-ops in a single process."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
from torch import Tensor, distributed, nn

from antigram.model.nets.backbone import Backbone
from antigram.pipeline.errors import DistributedError, InputError

__all__ = ["DistributedContext", "distributed_context"]

_GONE = (
    "another process of this job ended, and with it the job; its own line or torchrun's report "
    "says why. Run the same command again to continue (train: with `resume`)."
)
_TIMEOUT = timedelta(minutes=30)  # the other ranks wait while rank 0 evaluates


class DistributedContext:
    """Rank, world size and collectives; no-ops in a single process.

    Attributes:
        rank: number of this process, from 0.
        size: world size: the number of processes.
    """

    def __init__(self) -> None:
        self.rank = int(os.environ.get("RANK", "0"))
        self.size = int(os.environ.get("WORLD_SIZE", "1"))

    @property
    def leads(self) -> bool:
        """Whether this is rank 0, which writes files and shows messages."""
        return self.rank == 0

    def device(self, device: torch.device) -> torch.device:
        """Return the device of this process: if ``device`` is a GPU, the GPU of the local rank.

        Raises:
            InputError: this machine runs more processes than it has GPUs.
        """
        if device.type == "cuda" and self.size > 1:
            gpus = torch.cuda.device_count()
            if (local_rank := int(os.environ.get("LOCAL_RANK", "0"))) >= gpus:
                raise InputError(
                    f"process {local_rank} of this machine has no GPU, as there are {gpus}: start "
                    f"{gpus} processes on it"
                )
            device = torch.device("cuda", local_rank)
            torch.cuda.set_device(device)
        return device

    def wrap(self, net: Backbone) -> nn.Module:
        """Return a network whose gradients are averaged over all ranks."""
        if self.size == 1:
            return net
        return nn.parallel.DistributedDataParallel(net)

    def sum(self, values: Tensor) -> Tensor:
        """Return the sum over all ranks, on every rank; ``values`` are overwritten with it."""
        if self.size > 1:
            distributed.all_reduce(values)
        return values

    def share(self, text: str) -> str:
        """Return the text of rank 0, on every rank."""
        texts = [text]
        if self.size > 1:
            distributed.broadcast_object_list(texts, src=0)
        return texts[0]

    def wait(self) -> None:
        """Wait until all ranks have called this."""
        if self.size > 1:
            distributed.barrier()


@contextmanager
def distributed_context(device: torch.device) -> Iterator[DistributedContext]:
    """Join the job that torchrun started, and leave it at the end.

    Raises:
        DistributedError: another process of the job has ended.
    """
    context = DistributedContext()
    if context.size == 1:
        yield context
        return
    # If another process dies, the backend raises an error in a process that waits for it, and
    # torchrun sends SIGTERM to one that computes.
    previous = signal.signal(signal.SIGTERM, _on_sigterm)
    backend = "nccl" if device.type == "cuda" else "gloo"
    try:
        distributed.init_process_group(backend, timeout=_TIMEOUT)
        yield context
        distributed.destroy_process_group()  # not after an error: NCCL would wait for the others
    except RuntimeError as error:
        if isinstance(error, distributed.DistError) or "gloo" in str(error):
            raise DistributedError(_GONE) from error
        raise
    finally:
        signal.signal(signal.SIGTERM, previous)


def _on_sigterm(*_: object) -> None:
    raise DistributedError(_GONE)
