"""Plan a training: device memory and FLOPs of one step in each mode, without running it.

The training step itself is run on tensors that have shapes but no data (torch's fake tensors). Its
FLOPs and the bytes of all tensors alive at once are counted. Memory that GPU libraries use
(workspaces, fragmentation) is not included.
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
from antigram.model.choices import Aggregation, Codec, Layer, Precision, RowDtype, Tap, layer_order
from antigram.model.loss.codecs import Rows, forget_tables
from antigram.model.loss.sources import GramSource, LiveGrams, Sources, TapSpec
from antigram.model.nets.arch import OWN, Arch
from antigram.model.nets.backbone import Backbone, channels_last
from antigram.model.nets.networks import build_net, empty_net, tap_shape
from antigram.model.nets.own import named_arch, own_arch
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
_CPU = torch.device("cpu")  # autocast knows no fake device; sizes are the same on every device
_BLOCK = 512  # bytes: torch's GPU allocator gives out multiples
_ADAM_STATES = 2
_CLASSES = 2  # of a teacher, which are not computed


@dataclass(frozen=True, slots=True)
class StepCost:
    """Cost of one step.

    Attributes:
        memory: peak bytes alive at once: weights, gradients, Adam's states, activations, batch, and
            the next batch, which is copied to a GPU while this one is in use.
        flops: floating-point operations of matrix products and convolutions, forward and backward.
    """

    memory: int
    flops: int


class _Alive(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of all tensors that are alive."""

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
    ) -> Any:  # noqa: ANN401 - the result of any operation
        del types
        result = func(*args, **(kwargs or {}))
        self.note(result)
        return result

    def note(self, tensors: object) -> None:
        """Add the storages of new tensors to the count."""
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
    plans: Mapping[Layer, LayerPlan],
    shape: tuple[int, int],
    *,
    classes: int,
    batch_clips: int = 13,
    nets: int = 1,
    precision: Precision = "32",
) -> StepCost:
    """Return the cost of a training step.

    Args:
        arm: one of `ARMS`.
        arch: architecture of teacher and student.
        plans: layer -> form of its rows in a cache; exactly one layer for ``released``.
        shape: ``(frame, freq)`` of a segment.
        classes: number of classes of the task.
        batch_clips: segments in a batch.
        nets: number of teachers.
        precision: precision of the training.
    """
    spec = _spec(arch, plans)
    with _fake_tensors(), _Alive() as alive:
        net = channels_last(build_net(arch, classes, shape))
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
            teacher = channels_last(_bare(arch, shape))
            step = ReleasedStep(net, teacher, spec.layers[-1], precision)
        else:
            if arm == "online":
                live = [LiveGrams(_bare(arch, shape), spec) for _ in range(nets)]
                sources = Sources({str(n): source for n, source in enumerate(live)})
            elif arm == "cached":
                rows = {str(n): _Shapes(spec, plans, batch_clips) for n in range(nets)}
                sources = Sources(dict[str, GramSource](rows))
            step = Step(net, sources, config, _CPU)

        def made_batch() -> Batch:
            x = torch.empty(batch_clips, 1, *shape)
            y = torch.zeros(batch_clips, dtype=torch.int64)
            read: dict[str, Mapping[Layer, Rows]] = {str(n): {} for n in range(nets)}
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
    """Create tensors without data inside the block; then clear the tables that hold them."""
    forget_tables()
    try:
        with FakeTensorMode():
            yield
    finally:
        forget_tables()


def bare_net(arch: Arch, shape: tuple[int, int] = (0, 0)) -> Teacher:
    """Return a teacher with random weights, on which a plan does not depend.

    Args:
        arch: name and width.
        shape: ``(frame, freq)`` of a segment.
    """
    classes = 0 if arch.numbered else _CLASSES
    with torch.random.fork_rng(devices=[]):
        state = dict(build_net(arch, classes, shape).state_dict())
    return Teacher(arch, state, "", classes=classes, shape=shape)


def _bare(arch: Arch, shape: tuple[int, int]) -> Backbone:
    return build_net(arch, 0 if arch.numbered else _CLASSES, shape)


def _spec(arch: Arch, plans: Mapping[Layer, LayerPlan]) -> TapSpec:
    key = next(iter(plans.values())).key
    return TapSpec(
        arch=arch,
        layers=tuple(sorted(plans, key=layer_order)),
        tap=key.tap,
        aggregation=key.aggregation,
        grids={n: plan.key.grid for n, plan in plans.items() if plan.key.grid is not None},
    )


class _Shapes:
    """A `GramSource` whose rows have shapes but no data."""

    views: Views | None = None
    stored_bytes = 0
    arrays: Sequence[MappedArray] = ()

    def __init__(self, spec: TapSpec, plans: Mapping[Layer, LayerPlan], clips: int) -> None:
        self.spec = spec
        self.identity: Mapping[str, str] = {}
        self.plans, self.clips = plans, clips

    def keep_on(self, device: torch.device) -> None:
        """Do nothing, as nothing is stored."""

    def params(self, clips: NDArray[np.int64], epoch: int) -> NDArray[np.float32] | None:
        """Return None, as there are no views."""
        del clips, epoch
        return None

    def read(self, clips: NDArray[np.int64], epoch: int = 0) -> Mapping[Layer, Rows]:
        """Return nothing, as nothing is stored."""
        del clips, epoch
        return {}

    def rows(self, read: Mapping[Layer, Rows], x: Tensor) -> Mapping[Layer, Rows]:
        """Return rows of the form that a cache has."""
        del read
        rows = {}
        for layer, plan in self.plans.items():
            dtype = getattr(torch, plan.key.dtype)
            data = torch.empty(self.clips, *plan.row, dtype=dtype, device=x.device)
            norms = torch.empty(2, self.clips, device=x.device)
            scale = None
            if plan.scales:
                scale = torch.empty(self.clips, plan.scales, dtype=torch.float16, device=x.device)
            stored = Rows(plan.key.codec, data, norms[0], norms[1], grid=plan.key.grid, scale=scale)
            rows[layer] = stored.widened()
        return rows


def plan(
    workspace: Workspace,
    layers: Sequence[str | int],
    *,
    data: str | None = None,
    task: str | None = None,
    ckpt: Path | None = None,
    arch: str | None = None,
    width: int | None = None,
    tap: Tap = "relu",
    aggregation: Aggregation = "gram",
    codec: Codec | Literal["auto"] = "auto",
    rank: int | None = None,
    dtype: RowDtype = "float16",
    nets: int = 1,
    batch_clips: int = 13,
    precision: Precision = "32",
    on_message: OnMessage = lambda _: None,
) -> dict[str, Any]:
    """Return the cost of a training on a store; write nothing.

    Args:
        workspace: holds the store.
        layers: numbers of a VGG's convolution layers, names of modules, or ``all``.
        data: name of the store; default: the only one, or the one prepared last.
        task: label to learn; default: the main label of the store.
        ckpt: checkpoint of the teacher, for its architecture and width.
        arch: network of teacher and student; default: that of ``ckpt``, or vgg16.
        width: width of teacher and student; default: width of ``ckpt``, or 64.
        tap: ``relu``, ``conv`` or ``released``.
        aggregation: what is computed from the feature maps, such as ``gram``.
        codec: form of the rows of a cache.
        rank: rank of lowrank.
        dtype: dtype of the rows of a cache.
        nets: number of teachers.
        batch_clips: segments in a batch.
        precision: precision of the training.
        on_message: called with a line of text for each default that was chosen.

    Returns:
        The fields that `budget` returns.

    Raises:
        InputError: an argument is missing, unknown or does not fit.
    """
    if codec == "lowrank" and rank is None:
        raise InputError(
            "`codec=lowrank`: its rank is known only after running the teacher; give a `rank`"
        )
    if OWN in (arch or ""):
        own_arch(str(arch))  # so that a teacher with this network can be opened
    network = named_arch(arch, width, open_teacher(ckpt).arch if ckpt is not None else None)
    store = FeatureStore(workspace.store(data, on_message))
    task = task or store.main_label
    store.labels(task)  # raises if there is no such label
    spec = TapSpec(
        arch=network,
        layers=layer_numbers(layers, network, store.shape),
        tap=tap,
        aggregation=aggregation,
    )
    bare = bare_net(network, store.shape)
    return budget(
        store,
        network,
        plan_layers(store, bare, spec, codec=codec, dtype=dtype, rank=rank),
        classes=len(store.classes[task]),
        batch_clips=batch_clips,
        nets=nets,
        precision=precision,
    )


def budget(
    store: FeatureStore,
    arch: Arch,
    plans: Mapping[Layer, LayerPlan],
    *,
    classes: int,
    batch_clips: int = 13,
    nets: int = 1,
    precision: Precision = "32",
) -> dict[str, Any]:
    """Return the cost of each arm with each layer alone, and the size of a cache.

    Args:
        store: the feature store.
        arch: architecture of teacher and student.
        plans: layer -> form of its rows in a cache.
        classes: number of classes of the task.
        batch_clips: segments in a batch.
        nets: number of teachers.
        precision: precision of the training.

    Returns:
        ``baseline`` {memory, flops}; ``layers``: layer -> {arm: {memory, memory_over_baseline,
        flops, flops_over_baseline}}, ``paper_eq4_bytes`` and ``cache`` {codec, dtype,
        bytes_per_clip, bytes, bytes_per_step, break_even_epochs}. Memory in bytes.
    """

    def cost(arm: Arm, chosen: Mapping[Layer, LayerPlan]) -> StepCost:
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
    for number in sorted(plans, key=layer_order):
        plan = plans[number]
        arms = {}
        for arm in ARMS[1:]:
            step = cost(arm, {number: plan})
            arms[arm] = {
                "memory": step.memory,
                "memory_over_baseline": step.memory / base.memory,
                "flops": step.flops,
                "flops_over_baseline": step.flops / base.flops,
            }
        size = plan.bytes_per_clip
        layers[str(number)] = {
            **arms,
            "paper_eq4_bytes": _paper_eq4(arch, plan, store.shape, batch_clips),
            "cache": {
                "codec": plan.key.codec,
                "dtype": plan.key.dtype,
                "bytes_per_clip": size,
                "bytes": size * len(store) * nets,
                "bytes_per_step": size * batch_clips * nets,
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


def _paper_eq4(arch: Arch, plan: LayerPlan, shape: tuple[int, int], batch_clips: int) -> int:
    """Return the bytes that AT takes by the paper's equation 4: E + 2 (#G + #F) float32 numbers."""
    empty = empty_net(arch, 0 if arch.numbered else _CLASSES, shape)
    teacher = sum(p.numel() for p in empty.parameters())
    channels, positions = tap_shape(arch, plan.key.layer, plan.key.tap, shape)
    gram = batch_clips * channels**2
    maps = batch_clips * channels * positions
    return 4 * (teacher + 2 * (gram + maps))
