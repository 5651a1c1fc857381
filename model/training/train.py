"""The training loop, in one function, and the files that it writes."""

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
from antigram.model.nets.backbone import Backbone
from antigram.model.training.at_effect import Effect, Table, effect_note
from antigram.model.training.batches import Batches
from antigram.model.training.checkpoint import load_tensors, write_tensors
from antigram.model.training.checkpoint_writer import CheckpointWriter
from antigram.model.training.class_weights import balanced_weights, weights_note
from antigram.model.training.config import TrainConfig
from antigram.model.training.distributed import DistributedContext
from antigram.model.training.domains import prepare_domains
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
from antigram.model.training.schedule import Schedule
from antigram.model.training.shuffled import shuffled_labels, shuffled_note
from antigram.model.training.step import Step, Sums
from antigram.model.training.step_limiter import StepLimiter
from antigram.model.training.tensorboard import TensorBoardLogger
from antigram.model.training.worth import score, student_note
from antigram.pipeline.errors import InputError
from antigram.pipeline.features.split import SPLITS
from antigram.pipeline.features.store import FeatureStore
from antigram.pipeline.storage.held import Held

__all__ = ["OnTrainingProgress", "train"]

# Called with the epoch, the steps done in it, the steps of an epoch, and losses and rates by name.
OnTrainingProgress = Callable[[int, int, int, Mapping[str, float]], None]


def train(
    net: Backbone,
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
    addresses: Mapping[str, str] | None = None,
    on_message: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """Train a student; write config, metrics, checkpoints and result into the run's folder.

    Args:
        net: the student, from `build_student`.
        store: features and labels.
        grams: sources of the teachers' rows, live or cached; None without AT.
        config: settings of the training.
        run: the run's folder; it must not exist unless ``resume`` is true.
        device: device to train on.
        on_progress: called during and after each epoch: see `OnTrainingProgress`.
        resume: whether to go on from last.pt; ``epochs`` and ``patience`` may be raised.
        distributed: rank and world size; by default from torchrun's environment. Each rank takes
            its share of every batch.
        keep_resume: whether to keep last.pt when the run ends, so that epochs can be added later.
        save_every_s: least number of seconds between two writes of last.pt within an epoch. Writes
            take at most a twentieth of the time, so they are less frequent if they are slow.
        device_memory: bytes of GPU memory that data may take; by default half of the free memory.
        addresses: addresses in object stores that data were copied from, by the names of stores
            and caches; ``result.json`` keeps them.
        on_message: called with a line for each note and warning.

    Returns:
        Content of result.json.

    Raises:
        InputError: train or validation has no segment, or they have no class in common; the loss
            is not finite; or the run exists, was started with other settings or cannot be resumed.
        StoredDataError: stored data are damaged.
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
    shuffled = config.shuffle_labels
    labels = shuffled_labels(store, config.task, rows, config.seed) if shuffled else None
    class_weights = None
    if config.class_weights is not None:
        given = store.labels(config.task) if labels is None else labels
        balanced = balanced_weights(given[rows["train"]], len(classes))
        class_weights = torch.from_numpy(balanced).to(device)
        on_message(weights_note(balanced, classes))
    set_precision(config.precision)
    sources = grams if isinstance(grams, Sources) or grams is None else Sources({"": grams})
    held = Held((store.features, *(sources.arrays if sources else ())), on_message)
    # Channels last suits tensor cores, and makes a CPU 1.2 to 1.9 times as fast.
    net.to(device).to(memory_format=torch.channels_last)
    domains = prepare_domains(store, config, rows, net, device, distributed, on_message)
    domain_loss = domains.loss if domains else None
    trainable = [p for p in net.parameters() if p.requires_grad]
    trainable += domain_loss.parameters() if domain_loss is not None else []
    adam = torch.optim.Adam(
        trainable,
        lr=config.lr,
        weight_decay=config.weight_decay,
        decoupled_weight_decay=config.weight_decay > 0,
        fused=True,
    )
    steps_in_epoch = -(-len(rows["train"]) // config.batch_clips)
    schedule = Schedule(config, steps_in_epoch, adam)
    batches = Batches(
        store,
        config.task,
        sources,
        config.batch_clips,
        device,
        labels=labels,
        views=config.views,
        domains=domains.labels if domains else None,
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
    started = start(
        run,
        settings,
        config,
        net,
        adam,
        domain_loss,
        resume=resume,
        distributed=distributed,
    )
    files, state = started.files, started.state
    if started.note:
        on_message(started.note)
    if started.result is not None:
        if distributed.leads:
            _finish(files, started.result)
        for note in started.result.get("notes", ()):
            on_message(note)
        return started.result
    step = Step(net, sources, config, device, distributed.wrap(net), domain_loss, class_weights)
    schedule.restore(state.schedule)
    limiter = StepLimiter(device)
    guard = LossGuard(store, sources, config.lr, held.look)
    times: list[float] = []
    waited = worked = 0.0
    board = TensorBoardLogger(run)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    effect = Effect(sources, device, state.effect, leads=distributed.leads)
    validate = partial(
        _validate, step, batches, rows["validation"], limiter, guard, effect, distributed
    )
    if sources and not state.step:
        effect.begin(validate("before the first step", UNTRAINED)[1])

    buffered = any(True for _ in net.buffers())  # which the forward pass changes
    writer = CheckpointWriter(
        files,
        partial(state.content, net, adam, domain_loss),
        partial(checkpoint_of, store=store, config=config, run=run),
        device=device,
        save_every_s=save_every_s,
        on_message=on_message,
    )
    with writer:
        while not state.over(config):
            held.look()
            epoch_start = time.perf_counter()
            net.train()
            sums = Sums(step.names, device, step.measures)
            if state.done:  # resumed in the middle of an epoch
                sums.restore(state.sums)
            else:
                state.epoch += 1
                started.streams.begin_epoch(state.epoch, distributed.rank, distributed.size)
            order = started.streams.order(rows["train"], state.epoch)
            mark, since = epoch_start, 0
            remaining = order[state.done * config.batch_clips :]
            for batch in batches.passes(remaining, state.epoch):
                last = state.done + 1 == steps_in_epoch or state.step + 1 == config.max_steps
                if domain_loss is not None:
                    domain_loss.begin(state.step)
                if buffered:
                    writer.settle()
                loss = step(batch, sums, effect.gradients(first=not state.done, last=last))
                guard.add(batch.clips)
                loss.backward()  # type: ignore[no-untyped-call]
                if config.clip_norm is not None:
                    torch.nn.utils.clip_grad_norm_(trainable, config.clip_norm)
                schedule.begin_step(state.step)
                writer.settle()
                adam.step()
                adam.zero_grad(set_to_none=True)  # so that activations can take their memory
                limiter.wait()
                state.step += 1
                state.done += 1
                since += 1
                if last or state.done % 10 == 0 or device.type == "cpu":
                    # This waits for all queued steps of a GPU, so that the time below covers them.
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
                            "data_wait": batches.wait_s / (now - epoch_start),
                            "memory_mb": memory_mb(device),
                        },
                    )
                if config.max_steps and state.step >= config.max_steps:
                    break
                # last.pt lacks the sums and random numbers of other ranks, so a run of several
                # ranks saves between epochs only.
                if distributed.leads and writer.due() and distributed.size == 1 and not last:
                    now = time.perf_counter()
                    held.look()  # raises if data were overwritten, before anything is saved
                    state.sums, state.effect = sums.to_plain(), effect.to_plain()
                    writer.save()
                    mark += time.perf_counter() - now
            trained_s = time.perf_counter() - epoch_start
            waited += (wait_s := batches.wait_s)
            worked += trained_s
            state.done, state.sums = 0, {}

            when = f"validation after epoch {state.epoch}, step {state.step} of the run"
            losses, similarity = validate(when)
            held.look()
            best = state.is_best(losses["loss"])
            entry: dict[str, Any] = {
                "epoch": state.epoch,
                "train": sums.means(step.weights, distributed),
                "validation": losses,
                "seconds": time.perf_counter() - epoch_start,
                "data_wait_seconds": wait_s,
                **schedule.end_epoch(state.step, losses["loss"]),
                **effect.end_epoch(similarity, best=best),
            }
            state.effect, state.schedule = effect.to_plain(), schedule.to_plain()
            if distributed.leads:
                board.epoch(entry)
                writer.end_epoch(started.log(entry), best=best, over=state.over(config))
                on_progress(state.epoch, steps_in_epoch, steps_in_epoch, _flat(entry))

    board.close()
    distributed.wait()
    net.load_state_dict(load_tensors(run / BEST)["state_dict"])
    # Evaluation needs no rows of the teachers, and is not shared among ranks.
    unshared = Batches(store, config.task, None, config.batch_clips, device, labels=labels)
    scores = {split: evaluate(net, unshared, rows[split], classes) for split in SPLITS}
    held.look()
    result = result_of(run, store, config, state, net, scores, times, waited, worked, device)
    worth = {split: score(s.segments, s.recordings) for split, s in scores.items()}
    result |= {
        "resumable": keep_resume,
        "data_on_device": batches.resident,
        **({"addresses": dict(addresses)} if addresses else {}),
        **baselines_of(worth),
        **effect.to_json(),
    }
    judged = shuffled_note(config.task, config.seed) if shuffled else student_note(worth)
    notes = [judged, effect_note(effect.gradient_ratio, step.weights)]
    result["notes"] = [note for note in notes if note]
    if distributed.leads:
        scored = checkpoint_of(net.state_dict(), store, config, run, worth)
        files.write(BEST, partial(write_tensors, content=scored.to_plain()))
        files.write_json(RESULT, result)
        _finish(files, result)
    for note in result["notes"]:
        on_message(note)
    return result


def _validate(
    step: Step,
    batches: Batches,
    rows: NDArray[np.int64],
    limiter: StepLimiter,
    guard: LossGuard,
    effect: Effect,
    distributed: DistributedContext,
    when: str,
    *advice: str,
) -> tuple[dict[str, Any], Table]:
    """Return mean losses over validation, and similarities by layer and teacher."""
    step.net.eval()
    sums, probe = Sums(step.names, step.device, step.measures), effect.similarities()
    losses = []
    with torch.no_grad():
        for batch in batches.passes(rows):
            guard.add(batch.clips)
            losses.append(step(batch, sums, probe))
            limiter.wait()
    guard.check(torch.stack(losses), 0, when, *advice)  # once, as it waits for all queued steps
    return sums.means(step.weights, distributed), probe.means(distributed) if probe else {}


def _finish(files: RunFiles, result: Mapping[str, Any]) -> None:
    """Delete last.pt unless it is to be kept; also called to resume a run that has its result."""
    if not result.get("resumable", True):  # results of earlier versions lack it: last.pt is kept
        files.remove(LAST)
    files.adopt_events()


def _flat(entry: Mapping[str, Any]) -> dict[str, float]:
    """Flatten an entry of metrics.jsonl: ``{"train": {"ce": 1.}}`` -> ``{"train ce": 1.}``."""
    return {
        f"{split} {key}": value
        for split in ("train", "validation")
        for key, value in entry[split].items()
        if isinstance(value, float)
    }
