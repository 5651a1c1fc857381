"""Several processes that train one net or build one cache, started by torchrun; or just one."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
from torch import Tensor, distributed, nn

from antigram.model.nets.vgg import Vgg
from antigram.pipeline.errors import DistributedError, InputError

__all__ = ["DistributedContext", "distributed_context"]

_GONE = (
    "another process of this job ended, and with it the job; its own line or torchrun's report "
    "says why. The same command goes on where it was (train: with `resume`)."
)
_PATIENCE = timedelta(minutes=30)  # others wait while the first evaluates


class DistributedContext:
    """The processes of a job; without torchrun a team of one.

    Attributes:
        rank: number of this process.
        size: processes in all.
    """

    def __init__(self) -> None:
        self.rank = int(os.environ.get("RANK", "0"))
        self.size = int(os.environ.get("WORLD_SIZE", "1"))

    @property
    def leads(self) -> bool:
        """Whether this process writes and speaks."""
        return self.rank == 0

    def device(self, device: torch.device) -> torch.device:
        """Each process its own GPU, where GPUs are asked for."""
        if device.type == "cuda" and self.size > 1:
            if (own := int(os.environ.get("LOCAL_RANK", "0"))) >= torch.cuda.device_count():
                raise InputError(
                    f"process {own} of this machine has no GPU, as there are "
                    f"{torch.cuda.device_count()}: start as many processes as there are GPUs"
                )
            device = torch.device("cuda", own)
            torch.cuda.set_device(device)
        return device

    def wrap(self, net: Vgg) -> nn.Module:
        """The net, its gradients averaged over the team."""
        if self.size == 1:
            return net
        return nn.parallel.DistributedDataParallel(net)

    def sum(self, values: Tensor) -> Tensor:
        """Sum over the team, in every process."""
        if self.size > 1:
            distributed.all_reduce(values)
        return values

    def share(self, text: str) -> str:
        """The first process's text, in every process."""
        box = [text]
        if self.size > 1:
            distributed.broadcast_object_list(box, src=0)
        return box[0]

    def wait(self) -> None:
        """Until all are here."""
        if self.size > 1:
            distributed.barrier()


@contextmanager
def distributed_context(device: torch.device) -> Iterator[DistributedContext]:
    """Join the job that torchrun started; leave it at the end.

    Raises:
        DistributedError: another process of the job is gone.
    """
    one = DistributedContext()
    if one.size == 1:
        yield one
        return
    # A process that waits for one that died gets an error of the backend; one that computes is
    # told by torchrun to end.
    before = signal.signal(signal.SIGTERM, _told_to_end)
    backend = "nccl" if device.type == "cuda" else "gloo"
    try:
        distributed.init_process_group(backend, timeout=_PATIENCE)
        yield one
        distributed.destroy_process_group()  # not after an error: NCCL would wait for the others
    except RuntimeError as error:
        if isinstance(error, distributed.DistError) or "gloo" in str(error):
            raise DistributedError(_GONE) from error
        raise
    finally:
        signal.signal(signal.SIGTERM, before)


def _told_to_end(*_: object) -> None:
    raise DistributedError(_GONE)
