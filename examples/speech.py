"""Data for the examples, made on this machine: spoken words, and the cache of a teacher.

The words are synthesised (``pip install espeakng-loader``). The teacher is a small VGG that learned
the emotion of the voices, which a recogniser of words should ignore.
"""

import sys
from pathlib import Path

from torch import nn

import antigram

LAYER = 5  # of the teacher; it has 64 channels there
SMALL = {"arch": "vgg16", "width": 16, "epochs": 1}  # a width of 64 is the published network


def make() -> tuple[antigram.FeatureStore, antigram.GramCache]:
    """Return a store of words, and the cache of the teacher for its segments.

    Both are kept in the folder that is the first argument of the example, else in ``workspace``.
    """
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "workspace")
    workspace, teacher = antigram.Workspace(folder), folder / "emotion.pt"
    store = antigram.prepare_corpus(
        workspace, "demo", limit_per_class=20, split="by:speaker", name="words"
    ).store
    if not teacher.is_file():
        antigram.train_student(
            workspace, mode="baseline", data="words", task="emotion", save=teacher, **SMALL
        )
    cache = antigram.cache_grams(workspace, teacher, [LAYER], data="words")
    return store, antigram.GramCache(cache.path)


def network(classes: int) -> nn.Module:
    """Return a small network of one's own, from (batch, 1, frame, freq) to (batch, class)."""
    net = nn.Sequential()
    for number, (before, channels) in enumerate([(1, 16), (16, 32), (32, 64)], 1):
        block = nn.Sequential(
            nn.Conv2d(before, channels, 3, stride=2, padding=1),
            nn.BatchNorm2d(channels),
            nn.ReLU(inplace=True),
        )
        net.add_module(f"layer{number}", block)
    net.add_module("pool", nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()))
    net.add_module("head", nn.Linear(64, classes))
    return net
