"""The result of a training, and the checkpoint of its best weights."""

from __future__ import annotations

import platform
import resource
import shutil
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from antigram.model.nets.backbone import Backbone
from antigram.model.training.checkpoint import SHUFFLED, Checkpoint
from antigram.model.training.config import TrainConfig
from antigram.model.training.evaluate import Scores
from antigram.model.training.resume import State
from antigram.pipeline.execution.process import versions
from antigram.pipeline.features.split import SPLITS
from antigram.pipeline.features.store import FeatureStore
from antigram.pipeline.storage.durable import atomic_path
from antigram.pipeline.storage.publish import work_folder

__all__ = [
    "baselines_of",
    "checkpoint_of",
    "copy_best",
    "environment",
    "memory_mb",
    "result_of",
]


def result_of(
    run: Path,
    store: FeatureStore,
    config: TrainConfig,
    state: State,
    net: Backbone,
    scores: Mapping[str, Scores],
    times: list[float],
    waited: float,
    worked: float,
    device: torch.device,
) -> dict[str, Any]:
    """Return most fields of ``result.json``; `train` adds the others.

    Args:
        run: the run's folder.
        store: features and labels.
        config: settings of the training.
        state: where the training ended.
        net: network with the weights of the best epoch.
        scores: scores of that network, by split.
        times: seconds of each step.
        waited: seconds that all steps waited for data.
        worked: seconds of all steps, including the waits.
        device: device that the network was trained on.
    """
    per_step = statistics.median(times) if times else 0.0
    on_cuda = device.type == "cuda"
    return {
        "run": str(run),
        "mode": config.mode,
        "data": store.name,
        "features": store.fingerprint,
        "task": config.task,
        "against": config.against,
        "shuffle_labels": config.shuffle_labels,
        "needs_labels": [config.against] if config.against else [],
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


def baselines_of(scores: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Return fields ``chance``, ``majority`` and ``scores`` of ``result.json``.

    Args:
        scores: result of `worth.score`, by split. Chance and majority are taken from the test
            split, or from validation if the test split is empty.
    """
    judged = scores["test"] if scores["test"]["segments"] else scores["validation"]
    return {"chance": judged["chance"], "majority": judged["majority"], "scores": scores}


def checkpoint_of(
    weights: Mapping[str, Tensor],
    store: FeatureStore,
    config: TrainConfig,
    run: Path,
    scores: Mapping[str, Mapping[str, Any]] | None = None,
) -> Checkpoint:
    """Return the checkpoint of a network.

    Args:
        weights: state dict of the network; tensors that are in host memory are not copied.
        store: features and labels that it was trained on, with their preprocessing.
        config: settings of the training.
        run: the run's folder.
        scores: result of `worth.score`, by split, if known.
    """
    labels = {"labels": SHUFFLED} if config.shuffle_labels else {}
    return Checkpoint(
        arch=config.arch,
        task=config.task,
        classes=store.classes[config.task],
        state_dict={name: tensor.detach().cpu() for name, tensor in weights.items()},
        recipe=store.recipe,
        mean=store.mean,
        std=store.std,
        provenance={"run": run.name, "mode": config.mode, **labels, **environment()},
        scores={split: dict(score) for split, score in (scores or {}).items()},
    )


def copy_best(run: Path, target: Path) -> None:
    """Copy the best weights of a run to a file, atomically."""
    # The partial file has a fixed name, so that the next copy replaces what a killed one left.
    with atomic_path(target, work_folder(target), flush=False) as partial:
        shutil.copyfile(run / "best.pt", partial)


def memory_mb(device: torch.device) -> float:
    """Return the peak memory so far in MB: on a GPU, of its tensors; on a CPU, of the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def environment() -> dict[str, str]:
    """Return the versions of Python and of packages, for provenance; nothing depends on them."""
    names = ("antigram", "torch", "torchvision", "numpy", "zarr")
    return {
        "python": platform.python_version(),
        "machine": platform.machine(),
        **versions(names),
    }
