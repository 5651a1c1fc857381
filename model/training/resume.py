"""Where a training is, how it begins, and how it goes on: ``last.pt`` and ``metrics.jsonl``."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from antigram.model.nets.vgg import Vgg
from antigram.model.training.checkpoint import load_tensors, write_tensors
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
    """Where a training is: what ``last.pt`` holds besides the tensors."""

    epoch: int = 0
    step: int = 0
    best_epoch: int = 0
    best_loss: float = float("inf")
    done: int = 0  # steps of an epoch that is not finished
    sums: dict[str, Any] = field(default_factory=dict)  # and what they added up to
    effect: dict[str, Any] = field(default_factory=dict)  # of AT; not in older files

    def over(self, config: TrainConfig) -> bool:
        """All epochs or steps are done, or the validation loss has not improved for too long."""
        if self.done:
            return False
        stuck = self.epoch - self.best_epoch >= config.patience
        stepped = bool(config.max_steps) and self.step >= config.max_steps
        return self.epoch >= config.epochs or stuck or stepped

    def why_over(self, config: TrainConfig) -> str:
        """Why it is, and what would let it go on."""
        if self.epoch >= config.epochs:
            return f"it has {self.epoch} epochs; raise `epochs`"
        if config.max_steps and self.step >= config.max_steps:
            return f"it was stopped by `max_steps={config.max_steps}`"
        return f"the validation loss is at its least at epoch {self.best_epoch}; raise `patience`"

    def is_best(self, loss: float) -> bool:
        """Note the epoch if its validation loss is the least so far."""
        if self.best_epoch and not loss < self.best_loss:
            return False
        self.best_epoch, self.best_loss = self.epoch, loss
        return True

    def save(self, files: RunFiles, net: Vgg, adam: torch.optim.Adam) -> None:
        """Write last.pt, from which the run can go on."""
        device = next(net.parameters()).device
        content = {
            **FORMAT,
            **asdict(self),
            "model": net.state_dict(),
            "optimiser": adam.state_dict(),
            "rng": {
                "cpu": torch.get_rng_state(),
                "cuda": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
            },
        }
        files.write(LAST, lambda file: write_tensors(file, content))


@dataclass(slots=True)
class Start:
    """How a training begins.

    Attributes:
        files: of the run.
        state: where it is.
        streams: of random numbers.
        entries: of metrics.jsonl.
        result: of a run that is over; nothing is left to train.
        note: for the user.
    """

    files: RunFiles
    state: State
    streams: Streams | FirstStreams
    entries: list[dict[str, Any]] = field(default_factory=list)
    result: dict[str, Any] | None = None
    note: str = ""

    def log(self, entry: Mapping[str, Any]) -> None:
        """Add an entry to metrics.jsonl; those of epochs that are run again are dropped."""
        kept = [old for old in self.entries if old["epoch"] < entry["epoch"]]
        self.entries = [*kept, dict(entry)]
        text = "".join(json.dumps(each) + "\n" for each in self.entries)
        self.files.write_bytes(METRICS, text.encode())


def start(
    run: Path,
    settings: Mapping[str, Any],
    config: TrainConfig,
    net: Vgg,
    adam: torch.optim.Adam,
    *,
    resume: bool,
    distributed: DistributedContext,
) -> Start:
    """Make the run's folder; or read where an interrupted run is, and set net, Adam and RNG.

    Args:
        run: the folder.
        settings: for config.json: what decides the numbers, and the environment.
        config: what was asked for.
        net: gets the weights.
        adam: gets its averages.
        resume: go on with what is there.
        distributed: whose first process writes.

    Raises:
        InputError: the run is there, or was started with other settings, or cannot go on.
        StoredDataError: the run is damaged, or of a newer version.
    """
    if not resume and run.exists():
        raise InputError(f"{run}: a run of this name is there; choose another, or `resume` it")
    files = RunFiles.open(run) if resume else None
    if files is None or (files.version == 1 and LAST not in files and RESULT not in files):
        begun = Start(RunFiles(run, dict(settings)), State(), Streams(config.seed))
        distributed.wait()  # until all have looked
        if distributed.leads:
            begun.files.begin()
        return begun
    files.check(METRICS, BEST, LAST, RESULT)
    grown = _grown(files, settings)
    streams = Streams(config.seed) if files.version > 1 else FirstStreams(config.seed)
    begun = Start(files, State(), streams)
    if RESULT in files:
        begun.state, begun.result = _finished(files)
        if grown and begun.state.over(config):
            begun.note = f"{run}: nothing to train: {begun.state.why_over(config)}"
        if not begun.state.over(config) and LAST not in files:
            raise InputError(
                f"{run}: it has finished, and last.pt, from which it could go on, was dropped, as "
                "`keep_resume` was not given. Train anew, or begin with its weights: "
                f"`init={run / BEST}`"
            )
    if begun.result is None or not begun.state.over(config):
        begun.result = None
        if LAST in files:
            begun.state = _load(files, net, adam)
            if begun.state.best_epoch and BEST not in files:
                raise StoredDataError(f"{run / BEST}: missing. Restore it, or start a new run.")
        begun.entries = list(_entries(files, begun.state))
    distributed.wait()  # until all have read
    if distributed.leads:
        files.clear_leftovers()
        files.adopt_events()
        if begun.result is None:
            files.remove(RESULT, *DRAWN)
            if grown:
                files.move_end(config.to_json())
    return begun


def keep_ends(run: Path, config: TrainConfig, asked: Mapping[str, object]) -> TrainConfig:
    """For a run that goes on: its own ``epochs`` and ``patience``, where none are asked for."""
    try:
        stored = json.loads((run / CONFIG).read_bytes())["config"]
        ends = {name: int(stored[name]) for name in ENDS if asked.get(name) is None}
    except (OSError, ValueError, KeyError, TypeError):
        return config  # `start` says what is wrong with it
    return replace(config, **ends)  # type: ignore[arg-type]


def _grown(files: RunFiles, settings: Mapping[str, Any]) -> bool:
    """Hold the settings of a run against those asked for; whether its end was moved.

    Raises:
        InputError: they differ in more; it names what differs and nothing else.
    """
    keys = ("config", "features", "grams")
    was = dict(_leaves({key: files.settings.get(key) for key in keys}))
    now = dict(_leaves(json.loads(json.dumps({key: settings[key] for key in keys}))))
    names = [name for name in {**was, **now} if was.get(name) != now.get(name)]
    for name in ENDS:
        if name in names and isinstance(was.get(name), int) and now[name] > was[name]:
            names.remove(name)
    if names:
        differ = "; ".join(f"{n} {_shown(was.get(n))}, now {_shown(now.get(n))}" for n in names)
        raise InputError(
            f"{files.folder}: was started with {differ}. Resume with the same options, store and "
            "teacher (`epochs` and `patience` may be raised), or start a new run."
        )
    return was != now


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


def _load(files: RunFiles, net: Vgg, adam: torch.optim.Adam) -> State:
    """Set net, Adam and RNG to what last.pt holds."""
    path = files.folder / LAST
    device = next(net.parameters()).device
    try:
        last = load_tensors(path)
        if last.get("format") != FORMAT["format"]:
            raise ValueError(f"format is {last.get('format')!r}")
        if isinstance(number := last["format_version"], int) and number > 1:
            raise StoredDataError(f"written by version {number}, this reads up to 1")
        known = asdict(State())
        found = {"effect": {}, **{name: last[name] for name in known if name in last}}
        for name, value in known.items():
            if type(found[name]) is not type(value):
                raise TypeError(f"{name} is {found[name]!r}")
        if found["done"] and {"values", "clips"} - set(found["sums"]):
            raise KeyError("sums")
        own = net.state_dict()
        shapes = {name: tuple(tensor.shape) for name, tensor in last["model"].items()}
        if shapes != {name: tuple(tensor.shape) for name, tensor in own.items()}:
            raise ValueError("it has weights of other shapes")
        net.load_state_dict(last["model"])
        adam.load_state_dict(last["optimiser"])
        torch.set_rng_state(last["rng"]["cpu"])
        if device.type == "cuda" and last["rng"]["cuda"] is not None:
            torch.cuda.set_rng_state(last["rng"]["cuda"], device)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        why = _first_line(error).removeprefix(f"{path}: ")
        raise StoredDataError(
            f"{path}: not what this run left, or not all of it ({why}). Restore it, or start a "
            "new run."
        ) from None
    return State(**found)


def _entries(files: RunFiles, state: State) -> Iterator[dict[str, Any]]:
    """Entries of the epochs that are finished."""
    path, wanted = files.folder / METRICS, range(1, state.epoch + (not state.done))
    found: dict[int, dict[str, Any]] = {}
    try:
        for line in path.read_bytes().splitlines() if wanted else ():
            entry = json.loads(line)
            found[entry["epoch"]] = entry
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StoredDataError(
            f"{path}: unreadable behind {len(found)} lines ({_first_line(error)}). Restore it, or "
            "start a new run."
        ) from None
    if missing := set(wanted) - set(found):
        raise StoredDataError(
            f"{path}: without epoch {min(missing)}, but last.pt is at epoch {state.epoch}. "
            "Restore it, or start a new run."
        )
    yield from (found[epoch] for epoch in wanted)


def _first_line(error: Exception) -> str:
    text = repr(error) if isinstance(error, KeyError) else str(error)
    return text.strip().partition("\n")[0][:200]
