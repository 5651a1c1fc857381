"""What a training has to tell when it ends: its result, its best weights, where it was made."""

from __future__ import annotations

import platform
import resource
import shutil
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from antigram.model.nets.vgg import Vgg
from antigram.model.training.checkpoint import Checkpoint
from antigram.model.training.config import TrainConfig
from antigram.model.training.evaluate import Scores
from antigram.model.training.resume import State
from antigram.pipeline.execution.process import versions
from antigram.pipeline.features.split import SPLITS
from antigram.pipeline.features.store import FeatureStore
from antigram.pipeline.storage.durable import atomic_path
from antigram.pipeline.storage.publish import work_folder

__all__ = [
    "checkpoint_of",
    "copy_best",
    "environment",
    "held_against",
    "memory_mb",
    "result_of",
]


def result_of(
    run: Path,
    store: FeatureStore,
    config: TrainConfig,
    state: State,
    net: Vgg,
    scores: Mapping[str, Scores],
    times: list[float],
    waited: float,
    worked: float,
    device: torch.device,
) -> dict[str, Any]:
    """Most of what ``result.json`` holds.

    Args:
        run: the run's folder.
        store: features and labels.
        config: of the training.
        state: where it ended.
        net: with the weights of the best epoch.
        scores: of that network, by split.
        times: seconds of each step.
        waited: seconds that steps waited for data.
        worked: seconds of all steps, waiting and all.
        device: where it was trained.
    """
    per_step = statistics.median(times) if times else 0.0
    on_cuda = device.type == "cuda"
    return {
        "run": str(run),
        "mode": config.mode,
        "data": store.name,
        "features": store.fingerprint,
        "task": config.task,
        "layers": list(config.layers),
        "beta": {name: config.at_weight(name) for name, _ in config.betas} or config.beta,
        "seed": config.seed,
        "views": config.views.to_json() if config.views else None,
        "epochs": state.epoch,
        "steps": state.step,
        "best_epoch": state.best_epoch,
        "accuracy": {split: scores[split].segments.accuracy for split in SPLITS},
        "unweighted_average_recall": scores["test"].segments.unweighted_average_recall,
        "recordings": {
            "accuracy": {split: scores[split].recordings.accuracy for split in SPLITS},
            "unweighted_average_recall": scores["test"].recordings.unweighted_average_recall,
        },
        "confusion": scores["test"].segments.confusion.tolist(),
        "classes": list(scores["test"].segments.classes),
        "seconds_per_step": per_step,
        "clips_per_second": config.batch_clips / per_step if per_step else 0.0,
        "data_wait_fraction": waited / worked if worked else 0.0,
        "peak_rss_mb": memory_mb(torch.device("cpu")),
        "peak_device_mb": memory_mb(device) if on_cuda else None,
        "parameters": sum(p.numel() for p in net.parameters()),
        "device": torch.cuda.get_device_name(device) if on_cuda else "cpu",
        "environment": environment(),
    }


def held_against(worth: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Chance, and majority on the test split, or on validation where there is no test split."""
    judged = worth["test"] if worth["test"]["segments"] else worth["validation"]
    return {"chance": judged["chance"], "majority": judged["majority"], "scores": worth}


def checkpoint_of(
    net: Vgg,
    store: FeatureStore,
    config: TrainConfig,
    run: Path,
    scores: Mapping[str, Mapping[str, Any]] | None = None,
) -> Checkpoint:
    """The network as it is now, with all that another command needs of it.

    Args:
        net: the network.
        store: features and labels, whose preprocessing goes along.
        config: of the training.
        run: the run's folder.
        scores: of the network, by split, if they are known.
    """
    return Checkpoint(
        arch=config.arch,
        task=config.task,
        classes=store.classes[config.task],
        state_dict={name: tensor.detach().cpu() for name, tensor in net.state_dict().items()},
        recipe=store.recipe,
        mean=store.mean,
        std=store.std,
        provenance={"run": run.name, "mode": config.mode, **environment()},
        scores={split: dict(found) for split, found in (scores or {}).items()},
    )


def copy_best(run: Path, target: Path) -> None:
    """Copy the best weights to where the user wants them, atomically."""
    # One name: what a kill leaves, the next copy replaces.
    with atomic_path(target, work_folder(target), flush=False) as beside:
        shutil.copyfile(run / "best.pt", beside)


def memory_mb(device: torch.device) -> float:
    """Most MB taken so far: of the GPU, or of the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def environment() -> dict[str, str]:
    """Versions, for provenance; nothing depends on it."""
    names = ("antigram", "torch", "torchvision", "numpy", "zarr")
    return {
        "python": platform.python_version(),
        "machine": platform.machine(),
        **versions(names),
    }
