"""One training: the loop, read from top to bottom, and what it leaves on disk."""

from __future__ import annotations

import importlib.metadata
import json
import math
import platform
import resource
import shutil
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from model.at_loss import GramSource, LiveGrams, at_loss, released_loss
from model.batches import Batch, Batches, epoch_order
from model.checkpoint import Checkpoint, load_tensors, save_tensors
from model.evaluate import Scores, evaluate
from model.vgg import Arch, Vgg
from pipeline.chunks import write_text
from pipeline.errors import InputError, StoredDataError
from pipeline.split import SPLITS
from pipeline.store import FeatureStore

__all__ = ["MODES", "Tell", "TrainConfig", "build_student", "copy_best", "environment", "train"]

MODES = ("baseline", "wi", "frozen", "online", "cached")

# Called with the epoch, steps done in it, steps in all, and what is known of the losses.
Tell = Callable[[int, int, int, Mapping[str, float]], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainConfig:
    """Everything that decides a training's numbers, less its data and the frozen net.

    The defaults are the paper's. ``layers`` are those of AT, or up to which ``frozen`` freezes.
    """

    mode: str
    task: str
    arch: Arch
    layers: tuple[int, ...] = ()
    beta: float = 1.0
    aggregation: str = "gram"
    tap: str = "relu"
    similarity: str = "cos2"
    loss: str = "paper"
    epochs: int = 50
    patience: int = 5
    batch_clips: int = 13
    lr: float = 5e-4
    dropout: float = 0.5
    seed: int = 0
    precision: str = "32"
    max_steps: int = 0

    def __post_init__(self) -> None:
        for name, value, known in (
            ("--mode", self.mode, MODES),
            ("--loss", self.loss, ("paper", "released")),
            ("--precision", self.precision, ("32", "tf32", "bf16")),
        ):
            if value not in known:
                raise InputError(f"{name} {value!r}: wanted {', '.join(known)}")
        for option, number, least in (
            ("--epochs", self.epochs, 1),
            ("--patience", self.patience, 1),
            ("--batch-size", self.batch_clips, 1),
            ("--max-steps", self.max_steps, 0),
        ):
            if number < least:
                raise InputError(f"{option} {number}: wanted at least {least}")
        if not 0 < self.lr < float("inf"):
            raise InputError(f"--lr {self.lr}: wanted a number above 0")
        if not math.isfinite(self.beta):
            raise InputError(f"--beta {self.beta}: wanted a number")
        if not 0 <= self.dropout < 1:
            raise InputError(f"--dropout {self.dropout}: wanted at least 0, under 1")
        if self.mode == "frozen" and not self.layers:
            raise InputError("--mode frozen needs a layer: --layer 1 to 13")
        if self.loss == "released" and self.mode != "online":
            raise InputError(
                "--loss released mixes the clips of a batch, so its Grams cannot be cached: "
                "use it with --mode online, or leave it out"
            )

    @property
    def at_weight(self) -> float:
        """What the AT loss is multiplied by, in this one place; the released code squares beta."""
        return self.beta**2 if self.loss == "released" else self.beta

    def to_json(self) -> dict[str, Any]:
        """Plain types."""
        return {**asdict(self), "layers": list(self.layers)}


def build_student(config: TrainConfig, classes: int, init: Mapping[str, Tensor] | None) -> Vgg:
    """The net to train, its weights drawn from the seed alone, whatever was built before.

    Args:
        config: its shape, and the seed.
        classes: outputs.
        init: convolution weights to begin with (``wi``, ``frozen``, ``--init``).
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        net = Vgg(config.arch, classes, config.dropout)
    if init is not None:
        _load_convolutions(net, init)
    if config.mode == "frozen":
        net.freeze_up_to(max(config.layers))
    net.set_tap(config.tap)
    return net


def _load_convolutions(net: Vgg, init: Mapping[str, Tensor]) -> None:
    own = net.state_dict()
    for name, tensor in init.items():
        if name not in own or own[name].shape != tensor.shape:
            found = tuple(own[name].shape) if name in own else "missing"
            raise InputError(
                f"initial weights: {name} is {tuple(tensor.shape)}, the net's is {found}. "
                "Give the same --arch and --width as those weights have."
            )
    net.load_state_dict({**own, **init})


@dataclass(slots=True)
class _Sums:
    """Sums over clips of one pass, kept on the device so that no step waits for them."""

    values: Tensor  # ce, at, right
    clips: int = 0

    def add(self, ce: Tensor, at: Tensor, right: Tensor, clips: int) -> None:
        self.values += torch.stack([ce.detach(), at.detach(), right]).double()
        self.clips += clips

    def means(self, weight: float) -> dict[str, float]:
        ce, at, right = (self.values / max(1, self.clips)).tolist()
        return {"loss": ce + weight * at, "ce": ce, "at": at, "accuracy": right}


class _Step:
    """Forward pass and losses of a batch: the same for training and validation."""

    def __init__(
        self, net: Vgg, grams: GramSource | None, config: TrainConfig, device: torch.device
    ) -> None:
        self.net, self.grams, self.config, self.device = net, grams, config, device
        self.layers = grams.spec.layers if grams else ()

    def __call__(self, batch: Batch, sums: _Sums) -> Tensor:
        """Return the batch's mean loss, and add its clips' losses to the sums."""
        config = self.config
        at = torch.zeros((), device=self.device)
        frozen = self._released_maps(batch) if config.loss == "released" else {}
        rows = self.grams.rows(batch.read, batch.x) if self.grams and not frozen else {}

        def on_tap(layer: int, maps: Tensor) -> None:
            nonlocal at
            if frozen:
                at = at + released_loss(maps, frozen[layer])
            else:
                at = at + at_loss(maps, rows[layer], config.aggregation, config.similarity).mean()

        with torch.autocast(
            self.device.type, dtype=torch.bfloat16, enabled=config.precision == "bf16"
        ):
            logits = self.net(batch.x, self.layers, config.tap, on_tap)
        ce = functional.cross_entropy(logits.float(), batch.y)
        right = (logits.argmax(1) == batch.y).sum()
        clips = len(batch.y)
        sums.add(ce * clips, at * clips, right, clips)
        return ce + config.at_weight * at

    def _released_maps(self, batch: Batch) -> dict[int, Tensor]:
        if not isinstance(self.grams, LiveGrams):
            raise InputError("--loss released needs the frozen net itself: --mode online")
        found: dict[int, Tensor] = {}
        with torch.no_grad():
            self.grams.net.run_features(
                batch.x, self.layers, self.config.tap, found.__setitem__, stop=True
            )
        return found


def train(
    net: Vgg,
    store: FeatureStore,
    grams: GramSource | None,
    config: TrainConfig,
    run: Path,
    *,
    device: torch.device,
    tell: Tell = lambda *_: None,
    resume: bool = False,
) -> dict[str, Any]:
    """Train a net and leave config, metrics, checkpoints and result in a folder.

    Args:
        net: from `build_student`.
        store: features and labels.
        grams: the frozen net's side, live or cached; None without AT.
        config: decides the numbers.
        run: the run's folder; new unless ``resume``.
        device: where to train.
        tell: told of progress.
        resume: go on from ``last.pt``.

    Returns:
        What ``result.json`` holds.

    Raises:
        InputError: a split has no clip, or the run is another one's.
        StoredDataError: the loss is not finite, or stored data is damaged.
    """
    rows = {split: store.rows(split, config.task) for split in SPLITS}
    for split in ("train", "validation"):
        if not len(rows[split]):
            raise InputError(
                f"{store.path}: no clip with a {config.task} in the {split} split; "
                "prepare it with another --split"
            )
    classes = store.classes[config.task]
    _set_precision(config.precision)
    # Channels last: tensor cores want it, and a CPU is 1.2 to 1.9 times as fast.
    net.to(device).to(memory_format=torch.channels_last)
    adam = torch.optim.Adam([p for p in net.parameters() if p.requires_grad], lr=config.lr)
    batches = Batches(store, config.task, grams, config.batch_clips, device)
    step = _Step(net, grams, config, device)
    settings = {
        "config": config.to_json(),
        "features": store.fingerprint,
        "grams": dict(grams.identity) if grams else {},
    }
    state = _start(run, settings, net, adam, seed=config.seed, resume=resume)
    steps_in_epoch = -(-len(rows["train"]) // config.batch_clips)
    times: list[float] = []
    waited = worked = 0.0
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)

    while not state.over(config):
        state.epoch += 1
        begun = time.perf_counter()
        net.train()
        sums = _Sums(torch.zeros(3, dtype=torch.float64, device=device))
        order = epoch_order(rows["train"], config.seed, state.epoch)
        mark = begun
        for count, batch in enumerate(batches.passes(order), 1):
            loss = step(batch, sums)
            adam.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            adam.step()
            state.step += 1
            now = time.perf_counter()
            times.append(now - mark)
            mark = now
            if count % 10 == 0 or count == steps_in_epoch or device.type == "cpu":
                _check_finite(loss, batch, store)
                tell(state.epoch, count, steps_in_epoch, {"loss": loss.item()})
            if config.max_steps and state.step >= config.max_steps:
                break
        trained_s = time.perf_counter() - begun
        waited += (wait_s := batches.wait_s)
        worked += trained_s

        net.eval()
        unseen = _Sums(torch.zeros(3, dtype=torch.float64, device=device))
        with torch.no_grad():
            for batch in batches.passes(rows["validation"]):
                _check_finite(step(batch, unseen), batch, store)
        entry = {
            "epoch": state.epoch,
            "train": sums.means(config.at_weight),
            "validation": unseen.means(config.at_weight),
            "seconds": time.perf_counter() - begun,
            "data_wait_seconds": wait_s,
        }
        state.log(run, entry)
        if state.is_best(entry["validation"]["loss"]):  # type: ignore[index]
            save_tensors(run / "best.pt", _checkpoint(net, store, config, run).to_plain())
        state.save(run, net, adam)
        tell(state.epoch, steps_in_epoch, steps_in_epoch, _flat(entry))

    net.load_state_dict(load_tensors(run / "best.pt")["state_dict"])
    batches.grams = None  # decisions need no rows of the frozen net
    scores = {split: evaluate(net, batches, rows[split], classes) for split in SPLITS}
    result = _result(run, store, config, state, net, scores, times, waited, worked, device)
    write_text(run / "result.json", json.dumps(result, indent=2) + "\n")
    return result


@dataclass(slots=True)
class _State:
    """Where a training is: what ``last.pt`` holds besides the tensors."""

    epoch: int = 0
    step: int = 0
    best_epoch: int = 0
    best_loss: float = float("inf")

    def over(self, config: TrainConfig) -> bool:
        """All epochs or steps are done, or the validation loss has not improved for too long."""
        stuck = self.epoch - self.best_epoch >= config.patience
        stepped = bool(config.max_steps) and self.step >= config.max_steps
        return self.epoch >= config.epochs or stuck or stepped

    def is_best(self, loss: float) -> bool:
        """Note the epoch if its validation loss is the least so far."""
        if self.best_epoch and not loss < self.best_loss:
            return False
        self.best_epoch, self.best_loss = self.epoch, loss
        return True

    def log(self, run: Path, entry: Mapping[str, Any]) -> None:
        """Append to metrics.jsonl; entries of epochs that are run again are dropped."""
        path = run / "metrics.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        kept = [line for line in lines if json.loads(line)["epoch"] < self.epoch]
        write_text(path, "\n".join([*kept, json.dumps(entry)]) + "\n")

    def save(self, run: Path, net: Vgg, adam: torch.optim.Adam) -> None:
        """Write last.pt, from which the run can go on."""
        content = {
            "format": "antigram/resume",
            "format_version": 1,
            **asdict(self),
            "model": net.state_dict(),
            "optimiser": adam.state_dict(),
            "rng": {
                "cpu": torch.get_rng_state(),
                "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
            },
        }
        save_tensors(run / "last.pt", content)


def _start(
    run: Path,
    settings: Mapping[str, Any],
    net: Vgg,
    adam: torch.optim.Adam,
    *,
    seed: int,
    resume: bool,
) -> _State:
    """Make the run's folder, or read where an interrupted run is; set the RNG of the dropout."""
    path = run / "config.json"
    torch.manual_seed(seed)
    if not resume:
        run.mkdir(parents=True)
        write_text(path, json.dumps({**settings, "environment": environment()}, indent=2) + "\n")
        return _State()
    try:
        stored = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise StoredDataError(f"{path}: unreadable ({error}); the run cannot be resumed") from None
    for key, wanted in settings.items():
        if stored.get(key) != json.loads(json.dumps(wanted)):
            raise InputError(
                f"{run}: was started with another {key}: {stored.get(key)}, now {wanted}. "
                "Resume with the same options, store and frozen net, or start a new run."
            )
    if not (run / "last.pt").is_file():
        return _State()  # interrupted in its first epoch
    last = load_tensors(run / "last.pt")
    net.load_state_dict(last["model"])
    adam.load_state_dict(last["optimiser"])
    torch.set_rng_state(last["rng"]["cpu"])
    if torch.cuda.is_available() and last["rng"]["cuda"]:
        torch.cuda.set_rng_state_all(last["rng"]["cuda"])
    return _State(last["epoch"], last["step"], last["best_epoch"], last["best_loss"])


def _check_finite(loss: Tensor, batch: Batch, store: FeatureStore) -> None:
    if not torch.isfinite(loss):
        ids = ", ".join(store.clip_ids[i] for i in batch.clips)
        raise StoredDataError(
            f"{store.path}: the loss is {loss.item()} at the batch of {ids}. "
            "Lower --lr, or look at these clips with `antigram verify`."
        )


def _set_precision(precision: str) -> None:
    full = precision == "32"
    torch.backends.cuda.matmul.allow_tf32 = not full
    torch.backends.cudnn.allow_tf32 = not full


def _checkpoint(net: Vgg, store: FeatureStore, config: TrainConfig, run: Path) -> Checkpoint:
    return Checkpoint(
        arch=config.arch,
        task=config.task,
        classes=store.classes[config.task],
        state_dict={name: tensor.detach().cpu() for name, tensor in net.state_dict().items()},
        recipe=store.recipe,
        mean=store.mean,
        std=store.std,
        provenance={"run": run.name, "mode": config.mode, **environment()},
    )


def _flat(entry: Mapping[str, Any]) -> dict[str, float]:
    """``{"train": {"ce": 1.}}`` -> ``{"train ce": 1.}``, for progress."""
    return {
        f"{split} {key}": value
        for split in ("train", "validation")
        for key, value in entry[split].items()
    }


def environment() -> dict[str, str]:
    """Versions, for provenance; nothing depends on it."""
    names = ("antigram", "torch", "torchvision", "numpy", "zarr")
    return {
        "python": platform.python_version(),
        "machine": platform.machine(),
        **{name: importlib.metadata.version(name) for name in names},
    }


def _result(
    run: Path,
    store: FeatureStore,
    config: TrainConfig,
    state: _State,
    net: Vgg,
    scores: Mapping[str, Scores],
    times: list[float],
    waited: float,
    worked: float,
    device: torch.device,
) -> dict[str, Any]:
    per_step = statistics.median(times) if times else 0.0
    on_cuda = device.type == "cuda"
    return {
        "run": str(run),
        "mode": config.mode,
        "data": store.name,
        "features": store.fingerprint,
        "task": config.task,
        "layers": list(config.layers),
        "beta": config.beta,
        "seed": config.seed,
        "epochs": state.epoch,
        "steps": state.step,
        "best_epoch": state.best_epoch,
        "accuracy": {split: scores[split].accuracy for split in SPLITS},
        "unweighted_average_recall": scores["test"].unweighted_average_recall,
        "confusion": scores["test"].confusion.tolist(),
        "classes": list(scores["test"].classes),
        "seconds_per_step": per_step,
        "clips_per_second": config.batch_clips / per_step if per_step else 0.0,
        "data_wait_fraction": waited / worked if worked else 0.0,
        "peak_rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "peak_device_mb": torch.cuda.max_memory_allocated(device) / 2**20 if on_cuda else None,
        "parameters": sum(p.numel() for p in net.parameters()),
        "device": torch.cuda.get_device_name(device) if on_cuda else "cpu",
        "environment": environment(),
    }


def copy_best(run: Path, target: Path) -> None:
    """Copy the best weights to where the user wants them, whole or not at all."""
    beside = target.with_name(f".{target.name}.partial")
    shutil.copyfile(run / "best.pt", beside)
    beside.replace(target)
