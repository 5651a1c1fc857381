"""Start a run, or resume it from its state in ``last.pt`` and ``metrics.jsonl``."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from antigram.model.loss.domains import DomainLoss
from antigram.model.nets.backbone import Backbone
from antigram.model.training.checkpoint import load_tensors
from antigram.model.training.config import TrainConfig
from antigram.model.training.distributed import DistributedContext
from antigram.model.training.run_files import CONFIG, DRAWN, ENDS, RunFiles
from antigram.model.training.streams import FirstStreams, Streams
from antigram.pipeline.errors import InputError, StoredDataError

__all__ = ["Start", "State", "keep_ends", "start"]

FORMAT = {"format": "antigram/resume", "format_version": 1}
METRICS, RESULT, LAST, BEST = "metrics.jsonl", "result.json", "last.pt", "best.pt"


@dataclass(slots=True)
class State:
    """Progress of a training: the content of last.pt other than tensors.

    Attributes:
        epoch: number of the current epoch, from 1; 0 before the first.
        step: steps taken in all epochs.
        best_epoch: epoch with the least validation loss; 0 before the first validation.
        best_loss: validation loss of that epoch.
        done: steps taken in an unfinished epoch; 0 between epochs.
        sums: result of `Sums.to_plain` for an unfinished epoch.
        effect: result of `Effect.to_plain`; empty in files of earlier versions.
        schedule: result of `Schedule.to_plain`; empty in files of earlier versions.
    """

    epoch: int = 0
    step: int = 0
    best_epoch: int = 0
    best_loss: float = float("inf")
    done: int = 0
    sums: dict[str, Any] = field(default_factory=dict)
    effect: dict[str, Any] = field(default_factory=dict)
    schedule: dict[str, Any] = field(default_factory=dict)

    def over(self, config: TrainConfig) -> bool:
        """Return whether training ends: by ``epochs``, ``max_steps`` or ``patience``."""
        if self.done:
            return False
        stuck = self.epoch - self.best_epoch >= config.patience
        stepped = bool(config.max_steps) and self.step >= config.max_steps
        return self.epoch >= config.epochs or stuck or stepped

    def why_over(self, config: TrainConfig) -> str:
        """Return why training has ended, and which setting would let it continue."""
        if self.epoch >= config.epochs:
            return f"it has {self.epoch} epochs; raise `epochs`"
        if config.max_steps and self.step >= config.max_steps:
            return f"it was stopped by `max_steps={config.max_steps}`"
        return f"the validation loss is at its least at epoch {self.best_epoch}; raise `patience`"

    def is_best(self, loss: float) -> bool:
        """Return whether a validation loss is the least so far; if so, record it and its epoch."""
        if self.best_epoch and not loss < self.best_loss:
            return False
        self.best_epoch, self.best_loss = self.epoch, loss
        return True

    def content(
        self, net: Backbone, adam: torch.optim.Adam, domain_loss: DomainLoss | None = None
    ) -> dict[str, Any]:
        """Return the content of last.pt, from which the run can be resumed.

        Its tensors are those of the network and the optimiser, which change with the next step.
        """
        device = next(net.parameters()).device
        content: dict[str, Any] = {
            **FORMAT,
            **asdict(self),
            "model": net.state_dict(),
            "optimiser": adam.state_dict(),
            "rng": {
                "cpu": torch.get_rng_state(),
                "cuda": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
            },
        }
        if domain_loss is not None:
            content["domain_loss"] = domain_loss.state_dict()
        return content


@dataclass(slots=True)
class Start:
    """A run that is ready to train, new or resumed.

    Attributes:
        files: files of the run.
        state: progress of the run.
        streams: random numbers of the run.
        entries: entries of metrics.jsonl.
        result: content of result.json if the run is finished and has nothing left to train.
        note: a line for the user, or empty.
    """

    files: RunFiles
    state: State
    streams: Streams | FirstStreams
    entries: list[dict[str, Any]] = field(default_factory=list)
    result: dict[str, Any] | None = None
    note: str = ""

    def log(self, entry: Mapping[str, Any]) -> bytes:
        """Add an entry, which replaces those of this and of later epochs.

        Returns:
            The content of metrics.jsonl.
        """
        earlier = [old for old in self.entries if old["epoch"] < entry["epoch"]]
        self.entries = [*earlier, dict(entry)]
        return "".join(json.dumps(line) + "\n" for line in self.entries).encode()


def start(
    run: Path,
    settings: Mapping[str, Any],
    config: TrainConfig,
    net: Backbone,
    adam: torch.optim.Adam,
    domain_loss: DomainLoss | None = None,
    *,
    resume: bool,
    distributed: DistributedContext,
) -> Start:
    """Create the folder of a new run, or load the state of a run to resume.

    Args:
        run: the run's folder.
        settings: content of config.json: everything that decides the numbers, and the environment.
        config: settings of the training, as given now.
        net: the student; receives the stored weights.
        adam: optimiser of the student; receives the stored averages.
        domain_loss: loss between domains, if there is one; receives its stored weights.
        resume: whether to resume the run if it exists. The states of torch's random generators
            are then restored, too.
        distributed: rank and world size; rank 0 writes.

    Raises:
        InputError: the run exists and ``resume`` is false, was started with other settings, or
            cannot be resumed.
        StoredDataError: the run is damaged, or was written by a newer version.
    """
    if not resume and run.exists():
        raise InputError(f"{run}: this run exists; choose another name, or `resume` it")
    files = RunFiles.open(run) if resume else None
    if files is None or (files.version == 1 and LAST not in files and RESULT not in files):
        started = Start(RunFiles(run, dict(settings)), State(), Streams(config.seed))
        distributed.wait()  # until all ranks have looked for the run
        if distributed.leads:
            started.files.begin()
        return started
    files.check(METRICS, BEST, LAST, RESULT)
    end_moved = _end_moved(files, settings)
    streams = Streams(config.seed) if files.version > 1 else FirstStreams(config.seed)
    started = Start(files, State(), streams)
    if RESULT in files:
        started.state, started.result = _finished(files)
        if end_moved and started.state.over(config):
            started.note = f"{run}: nothing to train: {started.state.why_over(config)}"
        if not started.state.over(config) and LAST not in files:
            raise InputError(
                f"{run}: the run has finished, and last.pt, from which it could be resumed, was "
                "deleted, as `keep_resume` was not given. Train anew, or start from its weights: "
                f"`init={run / BEST}`"
            )
    if started.result is None or not started.state.over(config):
        started.result = None
        if LAST in files:
            started.state = _load(files, net, adam, domain_loss)
            if started.state.best_epoch and BEST not in files:
                raise StoredDataError(f"{run / BEST}: missing. Restore it, or start a new run.")
        started.entries = list(_entries(files, started.state))
    distributed.wait()  # until all ranks have read the files
    if distributed.leads:
        files.clear_leftovers()
        files.adopt_events()
        if started.result is None:
            files.remove(RESULT, *DRAWN)
            if end_moved:
                files.move_end(config.to_json())
    return started


def keep_ends(run: Path, config: TrainConfig, given: Mapping[str, object]) -> TrainConfig:
    """Take ``epochs`` and ``patience`` from the run to resume, unless the user gave them.

    Args:
        run: the run's folder.
        config: settings of the training, as given now.
        given: ``epochs`` and ``patience`` as the user gave them; None if not given.
    """
    try:
        stored = json.loads((run / CONFIG).read_bytes())["config"]
        ends = {name: int(stored[name]) for name in ENDS if given.get(name) is None}
    except (OSError, ValueError, KeyError, TypeError):
        return config  # `start` reports what is wrong with the run
    return replace(config, **ends)  # type: ignore[arg-type]


def _end_moved(files: RunFiles, settings: Mapping[str, Any]) -> bool:
    """Compare a run's settings with the given settings; return whether its end was moved.

    The end of a training is set by ``epochs`` and ``patience``, which may be raised.

    Raises:
        InputError: other settings differ; the message names them.
    """
    keys = ("config", "features", "grams")
    stored = dict(_leaves({key: files.settings.get(key) for key in keys}))
    given = dict(_leaves(json.loads(json.dumps({key: settings[key] for key in keys}))))
    if "init" not in stored:  # of an earlier version; initial weights do not matter any more
        given.pop("init", None)
    names = [name for name in {**stored, **given} if stored.get(name) != given.get(name)]
    ends = _ends(given["mode"], given.get("schedule"))
    for name in ends:
        if name in names and isinstance(stored.get(name), int) and given[name] > stored[name]:
            names.remove(name)
    if names:
        differ = "; ".join(
            f"{n} {_shown(stored.get(n))}, now {_shown(given.get(n))}" for n in names
        )
        raise InputError(
            f"{files.folder}: was started with {differ}. Resume with the same options, store and "
            f"teacher ({' and '.join(f'`{n}`' for n in ends)} may be raised), or start a new run."
        )
    return stored != given


def _ends(mode: str, schedule: str | None) -> tuple[str, ...]:
    """Return the settings that have no effect on the numbers of earlier epochs."""
    over_epochs = mode == "dann" or schedule == "cosine"  # a schedule of theirs runs over `epochs`
    return ("patience",) if over_epochs else ENDS


def _leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        name = f"{prefix} {key}".strip() if key != "config" else ""
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, name)
        else:
            yield name, value


def _shown(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 40 else f"{text[:13]}..."


def _finished(files: RunFiles) -> tuple[State, dict[str, Any]]:
    path = files.folder / RESULT
    try:
        result = json.loads(path.read_bytes())
        state = State(int(result["epochs"]), int(result["steps"]), int(result["best_epoch"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StoredDataError(
            f"{path}: unreadable ({_first_line(error)}). Delete it and resume again, or start a "
            "new run."
        ) from None
    return state, result


def _load(
    files: RunFiles, net: Backbone, adam: torch.optim.Adam, domain_loss: DomainLoss | None
) -> State:
    """Load last.pt into network, optimiser and random generators; return the progress."""
    path = files.folder / LAST
    device = next(net.parameters()).device
    try:
        last = load_tensors(path)
        if last.get("format") != FORMAT["format"]:
            raise ValueError(f"format is {last.get('format')!r}")
        if isinstance(number := last["format_version"], int) and number > 1:
            raise StoredDataError(f"written by version {number}, this reads up to 1")
        initial = asdict(State())
        later: dict[str, Any] = {
            "effect": {},
            "schedule": {},
        }  # files of earlier versions lack them
        fields = {**later, **{name: last[name] for name in initial if name in last}}
        for name, value in initial.items():
            if type(fields[name]) is not type(value):
                raise TypeError(f"{name} is {fields[name]!r}")
        if fields["done"] and {"values", "clips"} - set(fields["sums"]):
            raise KeyError("sums")
        weights = {"model": net, "domain_loss": domain_loss}
        for name, module in weights.items():
            if module is None:
                continue
            shapes = {key: tuple(tensor.shape) for key, tensor in last[name].items()}
            if shapes != {key: tuple(t.shape) for key, t in module.state_dict().items()}:
                raise ValueError("it has weights of other shapes")
            module.load_state_dict(last[name])
        adam.load_state_dict(last["optimiser"])
        torch.set_rng_state(last["rng"]["cpu"])
        if device.type == "cuda" and last["rng"]["cuda"] is not None:
            torch.cuda.set_rng_state(last["rng"]["cuda"], device)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        why = _first_line(error).removeprefix(f"{path}: ")
        raise StoredDataError(
            f"{path}: not as this run wrote it, or incomplete ({why}). Restore it, or start a new "
            "run."
        ) from None
    return State(**fields)


def _entries(files: RunFiles, state: State) -> Iterator[dict[str, Any]]:
    """Yield the entries of metrics.jsonl for the finished epochs."""
    path, epochs = files.folder / METRICS, range(1, state.epoch + (not state.done))
    entries: dict[int, dict[str, Any]] = {}
    try:
        for line in path.read_bytes().splitlines() if epochs else ():
            entry = json.loads(line)
            entries[entry["epoch"]] = entry
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StoredDataError(
            f"{path}: unreadable after {len(entries)} lines ({_first_line(error)}). Restore it, or "
            "start a new run."
        ) from None
    if missing := set(epochs) - set(entries):
        raise StoredDataError(
            f"{path}: lacks epoch {min(missing)}, but last.pt is at epoch {state.epoch}. Restore "
            "it, or start a new run."
        )
    yield from (entries[epoch] for epoch in epochs)


def _first_line(error: Exception) -> str:
    text = repr(error) if isinstance(error, KeyError) else str(error)
    return text.strip().partition("\n")[0][:200]
