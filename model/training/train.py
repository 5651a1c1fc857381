"""One training: the loop, read from top to bottom, and what it leaves on disk."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from antigram.model.loss.sources import GramSource, Sources
from antigram.model.nets.vgg import Vgg
from antigram.model.training.at_effect import Effect, Table, effect_note
from antigram.model.training.batches import Batches
from antigram.model.training.checkpoint import Checkpoint, load_tensors, write_tensors
from antigram.model.training.config import TrainConfig
from antigram.model.training.distributed import DistributedContext
from antigram.model.training.evaluate import evaluate
from antigram.model.training.guards import UNTRAINED, LossGuard, check_classes
from antigram.model.training.precision import set_precision
from antigram.model.training.resident import budget_for
from antigram.model.training.result import (
    baselines_of,
    checkpoint_of,
    environment,
    memory_mb,
    result_of,
)
from antigram.model.training.resume import BEST, LAST, RESULT, start
from antigram.model.training.run_files import RunFiles
from antigram.model.training.step import Step, Sums
from antigram.model.training.step_limiter import StepLimiter
from antigram.model.training.tensorboard import TensorBoardLogger
from antigram.model.training.worth import score, student_note
from antigram.pipeline.errors import InputError
from antigram.pipeline.features.split import SPLITS
from antigram.pipeline.features.store import FeatureStore
from antigram.pipeline.storage.held import Held

__all__ = ["OnTrainingProgress", "train"]

# Called with the epoch, steps done in it, steps in all, and what is known of the losses.
OnTrainingProgress = Callable[[int, int, int, Mapping[str, float]], None]


def train(
    net: Vgg,
    store: FeatureStore,
    grams: GramSource | Sources | None,
    config: TrainConfig,
    run: Path,
    *,
    device: torch.device,
    on_progress: OnTrainingProgress = lambda *_: None,
    resume: bool = False,
    distributed: DistributedContext | None = None,
    keep_resume: bool = False,
    save_every_s: float = 10.0,
    device_memory: int | None = None,
    on_message: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """Train a net and leave config, metrics, checkpoints and result in a folder.

    Args:
        net: from `build_student`.
        store: features and labels.
        grams: the teachers' side, live or cached; None without AT.
        config: decides the numbers.
        run: the run's folder; new unless ``resume``.
        device: where to train.
        on_progress: told of progress.
        resume: go on from ``last.pt``; ``epochs`` and ``patience`` may be raised.
        distributed: of processes that train together; each takes its share of every batch.
        keep_resume: keep ``last.pt`` when the run ends, so that it can go on with more epochs.
        save_every_s: seconds between two ``last.pt``; longer where writing it takes long.
        device_memory: bytes of a GPU that data may take; None: half of what is free.
        on_message: told what was decided.

    Returns:
        What ``result.json`` holds.

    Raises:
        InputError: a split has no segment, validation has no class that training has, the loss is
            no longer finite, or the run is there, was started with other settings or cannot go on.
        StoredDataError: stored data is damaged.
    """
    distributed = distributed or DistributedContext()
    store.read_index(config.task)
    rows = {split: store.rows(split, config.task) for split in SPLITS}
    for split in ("train", "validation"):
        if not len(rows[split]):
            raise InputError(
                f"{store.path}: no segment with a {config.task} in the {split} split; "
                "prepare it with another `split`"
            )
    check_classes(store, config.task, rows, on_message)
    classes = store.classes[config.task]
    set_precision(config.precision)
    sources = grams if isinstance(grams, Sources) or grams is None else Sources({"": grams})
    held = Held((store.features, *(sources.arrays if sources else ())), on_message)
    # Channels last: tensor cores want it, and a CPU is 1.2 to 1.9 times as fast.
    net.to(device).to(memory_format=torch.channels_last)
    learned = [p for p in net.parameters() if p.requires_grad]
    adam = torch.optim.Adam(learned, lr=config.lr, fused=True)
    batches = Batches(
        store,
        config.task,
        sources,
        config.batch_clips,
        device,
        views=config.views,
        device_memory=budget_for(device, device_memory),
        rank=distributed.rank,
        ranks=distributed.size,
    )
    if device.type == "cuda" or batches.resident:
        where = "on the device" if batches.resident else "in host memory, gathered ahead"
        on_message(f"data: {batches.data_bytes / 1e9:.2f} GB, {where}")
    settings = {
        "config": config.to_json(),
        "features": store.fingerprint,
        "grams": sources.identity if sources else {},
        "environment": environment(),
    }
    started = start(run, settings, config, net, adam, resume=resume, distributed=distributed)
    files, state = started.files, started.state
    if started.note:
        on_message(started.note)
    if started.result is not None:
        if distributed.leads:
            _finish(files, started.result)
        for note in started.result.get("notes", ()):
            on_message(note)
        return started.result
    step = Step(net, sources, config, device, distributed.wrap(net))
    steps_in_epoch = -(-len(rows["train"]) // config.batch_clips)
    limiter = StepLimiter(device)
    guard = LossGuard(store, sources, config.lr, held.look)
    times: list[float] = []
    waited = worked = 0.0
    board = TensorBoardLogger(run)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    effect = Effect(sources, device, state.effect, leads=distributed.leads)
    validate = partial(_validate, step, batches, rows["validation"], guard, effect, distributed)
    if sources and not state.step:
        effect.begin(validate("before the first step", UNTRAINED)[1])

    while not state.over(config):
        held.look()
        begun = saved = time.perf_counter()
        save_took = 0.0
        net.train()
        sums = Sums(step.names, device)
        if state.done:  # resumed in the middle of an epoch
            sums.restore(state.sums)
        else:
            state.epoch += 1
            started.streams.begin_epoch(state.epoch, distributed.rank, distributed.size)
        order = started.streams.order(rows["train"], state.epoch)
        mark, since = begun, 0
        left = order[state.done * config.batch_clips :]
        for batch in batches.passes(left, state.epoch):
            last = state.done + 1 == steps_in_epoch or state.step + 1 == config.max_steps
            loss = step(batch, sums, effect.gradients(first=not state.done, last=last))
            guard.add(batch.clips)
            loss.backward()  # type: ignore[no-untyped-call]
            adam.step()
            adam.zero_grad(set_to_none=True)  # no gradients beside the next batch's activations
            limiter.wait()
            state.step += 1
            state.done += 1
            since += 1
            if last or state.done % 10 == 0 or device.type == "cpu":
                # A GPU is then done with all that was queued.
                guard.check(loss, state.epoch, f"epoch {state.epoch}, step {state.done}")
                now = time.perf_counter()
                times += [(now - mark) / since] * since
                mark, since = now, 0
                on_progress(
                    state.epoch,
                    state.done,
                    steps_in_epoch,
                    {
                        "loss": loss.item(),
                        "clips_per_second": config.batch_clips / statistics.median(times[-50:]),
                        "data_wait": batches.wait_s / (now - begun),
                        "memory_mb": memory_mb(device),
                    },
                )
            if config.max_steps and state.step >= config.max_steps:
                break
            # Every ten seconds, or so seldom that writing takes a twentieth of the time.
            # Sums and random numbers of the others are not in it: a team saves after each epoch.
            now = time.perf_counter()
            if distributed.size == 1 and now - saved > max(save_every_s, 20 * save_took):
                held.look()  # nothing is saved of data that others overwrote
                state.sums, state.effect = sums.to_plain(), effect.to_plain()
                state.save(files, net, adam)
                saved = time.perf_counter()
                save_took = saved - now
                mark += save_took
        trained_s = time.perf_counter() - begun
        waited += (wait_s := batches.wait_s)
        worked += trained_s
        state.done, state.sums = 0, {}

        when = f"validation after epoch {state.epoch}, step {state.step} of the run"
        unseen, similarity = validate(when)
        held.look()
        best = state.is_best(unseen["loss"])
        entry: dict[str, Any] = {
            "epoch": state.epoch,
            "train": sums.means(step.weights, distributed),
            "validation": unseen,
            "seconds": time.perf_counter() - begun,
            "data_wait_seconds": wait_s,
            **effect.end_epoch(similarity, best=best),
        }
        state.effect = effect.to_plain()
        if distributed.leads:
            started.log(entry)
            board.epoch(entry)
            if best:
                _write_best(files, checkpoint_of(net, store, config, run))
            state.save(files, net, adam)
            on_progress(state.epoch, steps_in_epoch, steps_in_epoch, _flat(entry))

    board.close()
    distributed.wait()
    net.load_state_dict(load_tensors(run / BEST)["state_dict"])
    # Decisions need no rows of the teachers, and one process makes them all.
    alone = Batches(store, config.task, None, config.batch_clips, device)
    scores = {split: evaluate(net, alone, rows[split], classes) for split in SPLITS}
    held.look()
    result = result_of(run, store, config, state, net, scores, times, waited, worked, device)
    worth = {split: score(found.segments, found.recordings) for split, found in scores.items()}
    result |= {
        "resumable": keep_resume,
        "data_on_device": batches.resident,
        **baselines_of(worth),
        **effect.to_json(),
    }
    notes = [student_note(worth), effect_note(effect.gradient_ratio, step.weights)]
    result["notes"] = [note for note in notes if note]
    if distributed.leads:
        _write_best(files, checkpoint_of(net, store, config, run, worth))
        files.write_json(RESULT, result)
        _finish(files, result)
    for note in result["notes"]:
        on_message(note)
    return result


def _validate(
    step: Step,
    batches: Batches,
    rows: NDArray[np.int64],
    guard: LossGuard,
    effect: Effect,
    distributed: DistributedContext,
    when: str,
    *advice: str,
) -> tuple[dict[str, Any], Table]:
    """Mean losses over validation, and similarities by layer and teacher; in eval mode."""
    step.net.eval()
    sums, probe = Sums(step.names, step.device), effect.similarities()
    with torch.no_grad():
        for batch in batches.passes(rows):
            guard.add(batch.clips)
            guard.check(step(batch, sums, probe), 0, when, *advice)
    return sums.means(step.weights, distributed), probe.means(distributed) if probe else {}


def _write_best(files: RunFiles, checkpoint: Checkpoint) -> None:
    files.write(BEST, partial(write_tensors, content=checkpoint.to_plain()))


def _finish(files: RunFiles, result: Mapping[str, Any]) -> None:
    """Drop last.pt unless it was to be kept; also of a run that was killed behind its result."""
    if not result.get("resumable", True):  # results of before do not say, and keep what they have
        files.remove(LAST)
    files.adopt_events()


def _flat(entry: Mapping[str, Any]) -> dict[str, float]:
    """``{"train": {"ce": 1.}}`` -> ``{"train ce": 1.}``, for progress."""
    return {
        f"{split} {key}": value
        for split in ("train", "validation")
        for key, value in entry[split].items()
        if isinstance(value, float)
    }
