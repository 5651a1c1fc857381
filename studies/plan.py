"""What a training step would take, before anything runs: device memory and FLOPs, by mode.

Nothing is estimated by formula: the very step of the trainer is run on tensors that have shapes and
no data (torch's fake tensors), its FLOPs are counted, and the bytes of all tensors that are alive
at once. What a GPU's libraries take beside (workspaces, fragments) is not in it.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from antigram.cache.estimate import break_even_epochs
from antigram.cache.plan import LayerPlan, plan_layers
from antigram.model.choices import Aggregation, ArchName, Codec, Dtype, Precision, Tap
from antigram.model.loss.codecs import Rows, forget_tables
from antigram.model.loss.sources import GramSource, LiveGrams, Sources, TapSpec
from antigram.model.nets.arch import Arch
from antigram.model.nets.vgg import Vgg, channels_last
from antigram.model.training.batches import Batch
from antigram.model.training.checkpoint import Teacher, open_teacher
from antigram.model.training.config import TrainConfig
from antigram.model.training.released import ReleasedStep
from antigram.model.training.step import Step, Sums
from antigram.pipeline.audio.augmentation import Views
from antigram.pipeline.callbacks import OnMessage
from antigram.pipeline.errors import InputError
from antigram.pipeline.features.store import FeatureStore
from antigram.pipeline.storage.mapped import MappedArray
from antigram.pipeline.workspace import Workspace
from antigram.studies.job import layer_numbers

__all__ = ["ARMS", "StepCost", "bare_net", "budget", "plan", "step_cost"]

Arm = Literal["baseline", "cached", "online", "released"]
ARMS: tuple[Arm, ...] = get_args(Arm)
_CPU = torch.device("cpu")  # autocast knows no fake device; sizes are those on any
_BLOCK = 512  # bytes: torch's GPU allocator gives out multiples
_ADAM_STATES = 2


@dataclass(frozen=True, slots=True)
class StepCost:
    """What one step takes.

    Attributes:
        memory: most bytes alive at once: weights, gradients, Adam's states, activations, batch, and
            the next batch, which is copied to a GPU while this one is in use.
        flops: of matrix products and convolutions, forward and backward.
    """

    memory: int
    flops: int


class _Alive(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Keeps count of the bytes of all tensors alive."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.most = 0
        self._known: dict[int, weakref.ref[Any]] = {}

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401 - whatever the operation gives
        del types
        found = func(*args, **(kwargs or {}))
        self.note(found)
        return found

    def note(self, tensors: object) -> None:
        """Count the storages of tensors that are new."""
        for tensor in tree_leaves(tensors):
            if isinstance(tensor, Tensor):
                self._note(tensor.untyped_storage())

    def _note(self, storage: torch.UntypedStorage) -> None:
        if id(storage) in self._known:
            return
        size = -(-storage.nbytes() // _BLOCK) * _BLOCK

        def gone(_: object, key: int = id(storage)) -> None:
            self.now -= size
            del self._known[key]

        self._known[id(storage)] = weakref.ref(storage, gone)
        self.now += size
        self.most = max(self.most, self.now)


def step_cost(
    arm: Arm,
    arch: Arch,
    plans: Mapping[int, LayerPlan],
    shape: tuple[int, int],
    *,
    classes: int,
    batch_clips: int = 13,
    nets: int = 1,
    precision: Precision = "32",
) -> StepCost:
    """Cost of a training step.

    Args:
        arm: one of `ARMS`.
        arch: of both nets.
        plans: what is compared, and in which form a cache has it; of ``released`` one layer.
        shape: (frame, freq) of a clip.
        classes: classes of the task.
        batch_clips: clips in a batch.
        nets: teachers.
        precision: precision of the training.
    """
    spec = _spec(arch, plans)
    with _fake_tensors(), _Alive() as alive:
        net = channels_last(Vgg(arch, classes))
        config = TrainConfig(
            mode="baseline" if arm == "released" else arm,
            task="",
            arch=arch,
            layers=() if arm == "baseline" else spec.layers,
            tap=spec.tap,
            aggregation=spec.aggregation,
            precision=precision,
        )
        step: Step | ReleasedStep
        sources = None
        if arm == "released":
            teacher = channels_last(Vgg(arch, 0))
            step = ReleasedStep(net, teacher, spec.layers[-1], precision)
        else:
            if arm == "online":
                sources = Sources({str(n): LiveGrams(Vgg(arch, 0), spec) for n in range(nets)})
            elif arm == "cached":
                rows = {str(n): _Shapes(spec, plans, batch_clips) for n in range(nets)}
                sources = Sources(dict[str, GramSource](rows))
            step = Step(net, sources, config, _CPU)

        def made_batch() -> Batch:
            x = torch.empty(batch_clips, 1, *shape)
            y = torch.zeros(batch_clips, dtype=torch.int64)
            read: dict[str, Mapping[int, Rows]] = {str(n): {} for n in range(nets)}
            rows = sources.batch_rows(read, x) if sources is not None and arm == "cached" else None
            return Batch(np.zeros(batch_clips, np.int64), x, y, read, rows=rows)

        batch, _next = made_batch(), made_batch()
        sums = Sums(sources.names if sources else (), _CPU)
        with FlopCounterMode(display=False) as counter:
            step(batch, sums).backward()  # type: ignore[no-untyped-call]
        weights = sum(p.untyped_storage().nbytes() for p in net.parameters())
        return StepCost(alive.most + _ADAM_STATES * weights, int(counter.get_total_flops()))


@contextmanager
def _fake_tensors() -> Iterator[None]:
    """Tensors made inside have no data, and none of them is left in a table afterwards."""
    forget_tables()
    try:
        with FakeTensorMode():
            yield
    finally:
        forget_tables()


def bare_net(arch: Arch) -> Teacher:
    """A teacher of a shape, with any weights: what is planned does not depend on them."""
    return Teacher(arch, dict(Vgg(arch, 0).state_dict()), "")


def _spec(arch: Arch, plans: Mapping[int, LayerPlan]) -> TapSpec:
    key = next(iter(plans.values())).key
    return TapSpec(arch=arch, layers=tuple(sorted(plans)), tap=key.tap, aggregation=key.aggregation)


class _Shapes:
    """A `GramSource` whose rows have shapes and no data."""

    views: Views | None = None
    stored_bytes = 0
    arrays: Sequence[MappedArray] = ()

    def __init__(self, spec: TapSpec, plans: Mapping[int, LayerPlan], clips: int) -> None:
        self.spec = spec
        self.identity: Mapping[str, str] = {}
        self.plans, self.clips = plans, clips

    def keep_on(self, device: torch.device) -> None:
        """Nothing is stored."""

    def params(self, clips: NDArray[np.int64], epoch: int) -> NDArray[np.float32] | None:
        """No views."""
        del clips, epoch
        return None

    def read(self, clips: NDArray[np.int64], epoch: int = 0) -> Mapping[int, Rows]:
        """Nothing."""
        del clips, epoch
        return {}

    def rows(self, read: Mapping[int, Rows], x: Tensor) -> Mapping[int, Rows]:
        """Rows as a cache has them."""
        del read
        found = {}
        for layer, plan in self.plans.items():
            dtype = getattr(torch, plan.key.dtype)
            data = torch.empty(self.clips, *plan.row, dtype=dtype, device=x.device)
            norms = torch.empty(2, self.clips, device=x.device)
            found[layer] = Rows(plan.key.codec, data, norms[0], norms[1])
        return found


def plan(
    workspace: Workspace,
    layers: Sequence[str | int],
    *,
    data: str | None = None,
    task: str | None = None,
    ckpt: Path | None = None,
    arch: ArchName | None = None,
    width: int | None = None,
    tap: Tap = "relu",
    aggregation: Aggregation = "gram",
    codec: Codec | Literal["auto"] = "auto",
    rank: int | None = None,
    dtype: Dtype = "float16",
    nets: int = 1,
    batch_clips: int = 13,
    precision: Precision = "32",
    on_message: OnMessage = lambda _: None,
) -> dict[str, Any]:
    """Tell what a training on a store would take; nothing is made.

    Args:
        workspace: where the store is looked up.
        layers: numbers of convolution layers, or ``all``.
        data: the store; default: the only one, or the one prepared last.
        task: label to learn; default: the store's main one.
        ckpt: the teacher, for its shape.
        arch: of both nets; default: the teacher's, or vgg16.
        width: of both nets; default: the teacher's, or 64.
        tap: ``relu``, ``conv`` or ``released``.
        aggregation: what is made of the maps.
        codec: form of a cache's rows.
        rank: of lowrank.
        dtype: dtype of a cache's rows.
        nets: teachers.
        batch_clips: segments in a batch.
        precision: precision of the training.
        on_message: told which defaults were taken, in lines for people.

    Returns:
        As `budget`.

    Raises:
        InputError: something is missing, unknown or does not fit.
    """
    if codec == "lowrank" and rank is None:
        raise InputError("`codec=lowrank`: its rank is found by running the net; name a `rank`")
    shape = open_teacher(ckpt).arch if ckpt is not None else Arch()
    shape = Arch(arch or shape.name, shape.width if width is None else width)
    store = FeatureStore(workspace.store(data, on_message))
    task = task or store.main_label
    store.labels(task)  # says at once if there is no such label
    spec = TapSpec(
        arch=shape, layers=layer_numbers(layers, shape), tap=tap, aggregation=aggregation
    )
    return budget(
        store,
        shape,
        plan_layers(store, bare_net(shape), spec, codec=codec, dtype=dtype, rank=rank),
        classes=len(store.classes[task]),
        batch_clips=batch_clips,
        nets=nets,
        precision=precision,
    )


def budget(
    store: FeatureStore,
    arch: Arch,
    plans: Mapping[int, LayerPlan],
    *,
    classes: int,
    batch_clips: int = 13,
    nets: int = 1,
    precision: Precision = "32",
) -> dict[str, Any]:
    """Costs of all arms for each layer alone, and of a cache.

    Returns:
        ``baseline`` {memory, flops}; ``layers``: layer -> {arm: {memory, memory_over_baseline,
        flops, flops_over_baseline}}, ``paper_eq4_bytes`` and ``cache`` {codec, dtype,
        bytes_per_clip, bytes, break_even_epochs}. Memory in bytes.
    """

    def cost(arm: Arm, chosen: Mapping[int, LayerPlan]) -> StepCost:
        return step_cost(
            arm,
            arch,
            chosen,
            store.shape,
            classes=classes,
            batch_clips=batch_clips,
            nets=1 if arm == "released" else nets,
            precision=precision,
        )

    base = cost("baseline", plans)
    layers: dict[str, Any] = {}
    for number, plan in sorted(plans.items()):
        arms = {}
        for arm in ARMS[1:]:
            found = cost(arm, {number: plan})
            arms[arm] = {
                "memory": found.memory,
                "memory_over_baseline": found.memory / base.memory,
                "flops": found.flops,
                "flops_over_baseline": found.flops / base.flops,
            }
        size = plan.bytes_per_clip
        layers[str(number)] = {
            **arms,
            "paper_eq4_bytes": _paper_eq4(arch, plan, batch_clips),
            "cache": {
                "codec": plan.key.codec,
                "dtype": plan.key.dtype,
                "bytes_per_clip": size,
                "bytes": size * len(store) * nets,
                "break_even_epochs": break_even_epochs(store, plan),
            },
        }
    return {
        "store": store.name,
        "batch_clips": batch_clips,
        "nets": nets,
        "baseline": {"memory": base.memory, "flops": base.flops},
        "layers": layers,
    }


def _paper_eq4(arch: Arch, plan: LayerPlan, batch_clips: int) -> int:
    """Bytes that the paper's equation 4 gives to AT: E + 2 (#G + #F), of float32."""
    with torch.device("meta"):
        teacher = sum(p.numel() for p in Vgg(arch, 0).parameters())
    gram = batch_clips * plan.channels**2
    maps = batch_clips * plan.channels * plan.positions
    return 4 * (teacher + 2 * (gram + maps))
