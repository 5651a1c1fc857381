"""Probe the layers of a network for a label, beside references that show what the numbers mean."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from antigram.model.choices import Layer
from antigram.model.training.chance import chance
from antigram.model.training.checkpoint import Checkpoint
from antigram.pipeline.callbacks import OnMessage, OnProgress
from antigram.pipeline.draw import check_seed
from antigram.pipeline.errors import InputError
from antigram.pipeline.features.store import FeatureStore
from antigram.studies.job import layer_numbers
from antigram.studies.probe.classifiers import (
    Probed,
    check_installed,
    majority_of_parts,
    run_probe,
    shuffled_labels,
)
from antigram.studies.probe.code_length import code_length
from antigram.studies.probe.division import Sample, choose_groups, choose_sample, shuffled_order
from antigram.studies.probe.opening import open_network
from antigram.studies.probe.representation import (
    Representations,
    represent,
    trained,
    untrained,
)
from antigram.studies.probe.similarity import MOST_SEGMENTS, linear_cka
from antigram.studies.statistics import resampled_t

__all__ = ["MEASURES", "probe_run"]

# What is measured beside the linear probe; the first three cost most.
MEASURES = ("mlp", "untrained", "selectivity", "raw_input", "code_length")
_PARTS = 5


def probe_run(
    run: Path,
    store: Path | FeatureStore,
    task: str,
    layers: Sequence[int | str] = ("all",),
    *,
    groups: str | None = None,
    split: str | None = None,
    parts: int = _PARTS,
    compare: Path | None = None,
    measures: Collection[str] = MEASURES,
    seed: int = 0,
    device: torch.device | None = None,
    on_progress: OnProgress = lambda *_: None,
    on_message: OnMessage = lambda _: None,
) -> dict[str, Any]:
    """Measure how much of a label a network's layers hold.

    A segment is represented by mean and standard deviation over the positions of each channel,
    after the ReLU. Probes are trained on all parts but one and tested on that one; no group and no
    recording is in two parts. Standardisation and the choice of C see training parts only.

    Args:
        run: folder of a run, or file of a checkpoint.
        store: feature store, or its path. If it is not the one the network was trained on, its
            features are normalised again with the network's mean and standard deviation.
        task: label of the store that is probed.
        layers: numbers of a VGG's convolution layers, names of modules, or ``all``.
        groups: label whose classes no two parts share; by default the label that the network
            was trained for, or, to probe that label itself, another label of the store.
        split: ``train``, ``validation``, ``test`` or ``all``; by default ``test`` if it has ten
            segments for each class on average, else ``all``.
        parts: number of parts; fewer if there are fewer groups.
        compare: folder of another run, or file of another checkpoint, for CKA.
        measures: any of `MEASURES`; the fields of the others are None. With none of them, a
            network of width 8 takes a few seconds.
        seed: seed of the parts, of untrained networks and of shuffled labels.
        device: device of the networks; default: the CPU.
        on_progress: called with the stage, what is done, and the total.
        on_message: called with a line of text for each default that was chosen.

    Returns:
        The fields of ``probe --json``: see docs/probes.md.

    Raises:
        InputError: a label, a layer or enough segments are missing; an argument does not fit; or
            scikit-learn is not installed.
        StoredDataError: the run or the store is damaged.
    """
    check_installed()
    check_seed(seed)
    if unknown := sorted(set(measures) - set(MEASURES)):
        raise InputError(f"measures {unknown[0]!r}: wanted any of {', '.join(MEASURES)}")
    opened = store if isinstance(store, FeatureStore) else FeatureStore(store)
    network = open_network(run, opened)
    numbers = layer_numbers(list(layers), network.arch, opened.shape)
    other = None if compare is None else open_network(compare, opened)
    if other is not None:
        try:
            same = layer_numbers(numbers, other.arch, opened.shape) == numbers
        except InputError as error:
            raise InputError(f"{compare}: {error}") from None
        if not same:
            raise InputError(f"{compare}: has other layers ({other.arch}); compare two alike")
    label = choose_groups(opened, task, network.task, groups, on_message)
    sample = choose_sample(opened, task, label, split, parts, seed, on_message)
    held = _represent(network, other, numbers, opened, sample, measures, seed, device, on_progress)
    work = _Work(sample, held, measures, seed)
    found = {}
    for number in numbers:
        found[str(number)] = work.of_layer(number)
        on_progress("probes", len(found), len(numbers))
    return {
        "run": str(run),
        "task": task,
        "trained_for": network.task,
        "data": str(opened.path),
        "split": sample.split,
        "segments": len(sample.rows),
        "recordings": len(np.unique(sample.recordings)),
        "classes": sample.classes,
        "left_out": sample.left_out,
        "groups": sample.groups_label or "recording",
        "parts": int(sample.parts.max()) + 1,
        "compared_with": None if compare is None else str(compare),
        "seed": seed,
        "layers": found,
    }


def _represent(
    network: Checkpoint,
    other: Checkpoint | None,
    layers: Collection[Layer],
    store: FeatureStore,
    sample: Sample,
    measures: Collection[str],
    seed: int,
    device: torch.device | None,
    on_progress: OnProgress,
) -> Representations:
    nets = {"the network": trained(network)}
    of = {"the network": network}
    if "untrained" in measures or other is not None:
        nets["untrained"] = untrained(network.arch, seed, shape=store.shape)
        of["untrained"] = network
    if other is not None:
        nets["the other network"] = trained(other)
        nets["another untrained"] = untrained(other.arch, seed, "another untrained", store.shape)
        of |= {"the other network": other, "another untrained": other}
    scales = {
        name: (store.std / net.std, (store.mean - net.mean) / net.std) for name, net in of.items()
    }
    on = device or torch.device("cpu")
    return represent(nets, layers, store, sample.rows, on, scales, on_progress)


@dataclass(slots=True)
class _Work:
    """Probes of one sample; what is the same for all layers is measured once."""

    sample: Sample
    held: Representations
    measures: Collection[str]
    seed: int
    _raw: float | None = None

    def of_layer(self, number: Layer) -> dict[str, Any]:
        """Return an entry of ``layers``."""
        sample, layers = self.sample, self.held.of_layers
        x = layers["the network"][number]
        linear = run_probe("linear", x, sample, self.seed)
        mlp = run_probe("mlp", x, sample, self.seed) if "mlp" in self.measures else None
        shuffled = self._shuffled(x)
        bits = code_length(x, sample, self.seed) if "code_length" in self.measures else None
        count = len(sample.classes)
        return {
            "linear": linear.accuracy,
            "mlp": None if mlp is None else mlp.accuracy,
            "chance": chance(sample.classes),
            "majority": majority_of_parts(sample),
            "raw_input": self._raw_input(),
            "untrained": self._untrained(number),
            "selectivity": None if shuffled is None else linear.accuracy - shuffled,
            "shuffled": shuffled,
            "code_length": bits,
            "uniform_code_length": math.log2(count),
            "interval": _interval(linear),
            "mlp_interval": None if mlp is None else _interval(mlp),
            "parts": linear.accuracies.tolist(),
            "unweighted_average_recall": float(np.mean(_recalls(linear, sample))),
            "recall": dict(zip(sample.classes, _recalls(linear, sample), strict=True)),
            "strengths": linear.strengths,
            "cka": self._cka(number),
        }

    def _raw_input(self) -> float | None:
        if "raw_input" in self.measures and self._raw is None:
            x = self.held.raw_input
            self._raw = run_probe("linear", x, self.sample, self.seed).accuracy
        return self._raw

    def _untrained(self, number: Layer) -> float | None:
        if "untrained" not in self.measures:
            return None
        x = self.held.of_layers["untrained"][number]
        return run_probe("linear", x, self.sample, self.seed).accuracy

    def _shuffled(self, x: NDArray[np.float32]) -> float | None:
        if "selectivity" not in self.measures:
            return None
        y = shuffled_labels(self.sample, self.seed)
        return run_probe("linear", x, self.sample, self.seed, y).accuracy

    def _cka(self, number: Layer) -> dict[str, float | None] | None:
        layers = self.held.of_layers
        if "the other network" not in layers:
            return None
        count = len(self.sample.rows)
        rows = np.sort(shuffled_order(count, self.seed, "cka")[:MOST_SEGMENTS])
        pairs = {"": ("the network", "the other network")}
        pairs |= {"untrained_": ("untrained", "another untrained")}
        found: dict[str, float | None] = {}
        for name, (one, two) in pairs.items():
            values = linear_cka(layers[one][number][rows], layers[two][number][rows])
            for kind, value in zip(("biased", "debiased"), values, strict=True):
                found[f"{name}{kind}"] = None if math.isnan(value) else value
        return found


def _interval(probed: Probed) -> Mapping[str, float]:
    """95 % interval of the mean over parts, whose training segments overlap."""
    count = len(probed.accuracies)
    found = resampled_t(probed.accuracies, 1 / (count - 1))
    return {"low": max(0.0, found.low), "high": min(1.0, found.high)}


def _recalls(probed: Probed, sample: Sample) -> list[float]:
    right = probed.predicted == sample.y
    return [float(right[sample.y == index].mean()) for index in range(len(sample.classes))]
