"""Make checkpoints and teachers of narrow networks with random weights."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from antigram.model.nets.arch import Arch
from antigram.model.nets.networks import build_net
from antigram.model.training.checkpoint import Checkpoint, Teacher, open_teacher, save_tensors
from antigram.pipeline.features.store import FeatureStore


def checkpoint_of(arch: Arch, store: FeatureStore, *, seed=11, classes=None) -> Checkpoint:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        names = list(classes or store.classes["label"])
        net = build_net(arch, len(names), store.shape, init="torchvision")
        # Biases are initialised as zeros, which would hide a bias that is left out.
        for name, tensor in net.state_dict().items():
            if name.endswith("bias"):
                tensor.uniform_(-0.05, 0.05)
        if any(name.endswith("running_var") for name in net.state_dict()):
            with torch.no_grad():  # as if it was trained: else a batch norm changes nothing
                for _ in range(8):
                    net.train()(torch.randn(16, 1, *store.shape))
    return Checkpoint(
        arch=arch,
        task="label",
        classes=names,
        state_dict=net.state_dict(),
        recipe=store.recipe,
        mean=store.mean,
        std=store.std,
        provenance={"run": "made for a test"},
    )


def log_probabilities_of(checkpoint: Checkpoint, store: FeatureStore) -> np.ndarray:
    """Return the log-probabilities ``(segment, class)`` of all segments of a store."""
    with torch.no_grad():
        x = torch.from_numpy(store.features.read().astype(np.float32))[:, None]
        return checkpoint.net()(x).double().log_softmax(1).numpy()


def sharp(arch: Arch, store: FeatureStore, **changes) -> Checkpoint:
    """Return a network with large weights and centred logits, so that its predictions vary."""
    found = checkpoint_of(arch, store, seed=4)
    for name, tensor in found.state_dict.items():
        if name.startswith("classifier") and name.endswith("weight"):
            tensor.mul_(40)
    mean = log_probabilities_of(found, store).mean(0)
    found.state_dict["classifier.6.bias"] -= torch.from_numpy(mean)
    return replace(found, **changes)


def save_teacher(path: Path, arch: Arch, store: FeatureStore, *, seed=11) -> Teacher:
    save_tensors(path, checkpoint_of(arch, store, seed=seed).to_plain())
    return open_teacher(path)
