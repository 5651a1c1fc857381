"""On a GPU: it gets the rows on disk, and trains to the same numbers as a CPU."""

import numpy as np
import pytest
import torch

from antigram.cache.grams import GramCache
from antigram.model.loss.sources import Sources
from antigram.model.training.batches import Batches
from antigram.model.training.config import TrainConfig
from antigram.model.training.student import build_student
from antigram.model.training.train import train
from tests.support.nets import CPU, LAYERS, VGG16
from tests.support.runs import metrics

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.fixture
def device():
    return torch.device("cuda")


def sources_of(build, store, device):
    path = build(dtype="float16").path
    return Sources({name: GramCache(path, store, device=device) for name in ("one", "two")})


def parts_of(batch):
    return [batch.x, batch.y, *batch.rows.tensors()]


@pytest.mark.parametrize("memory", [0, 10**9], ids=["from the host", "held on the device"])
def test_batches_copied_ahead_are_those_of_the_host(memory, device, build, store):
    rows = np.random.default_rng(0).permutation(np.tile(np.arange(15), 20))
    here = Batches(store, "label", sources_of(build, store, CPU), 4, CPU)
    there = Batches(
        store, "label", sources_of(build, store, device), 4, device, device_memory=memory
    )
    assert there.resident == bool(memory)
    # The losses are read at the end only, so that nothing but the loader makes a step wait.
    kept = [[part.clone() for part in parts_of(batch)] for batch in there.passes(rows)]
    assert len(kept) == 75
    assert all(part.device.type == "cuda" for part in kept[0])
    for want, got in zip(here.passes(rows), kept, strict=True):
        for one, two in zip(parts_of(want), got, strict=True):
            assert torch.equal(one, two.cpu())


def test_a_training_there_has_the_losses_of_one_here(device, build, store, tmp_path):
    config = TrainConfig(
        mode="cached",
        task="label",
        arch=VGG16,
        layers=LAYERS,
        epochs=2,
        batch_clips=4,
        lr=1e-6,
        dropout=0.0,
    )
    found = []
    for place in (CPU, device):
        sources = sources_of(build, store, place)
        run = tmp_path / place.type
        train(build_student(config, 3, None), store, sources, config, run, device=place)
        found.append([[e["train"]["ce"], e["train"]["at"]] for e in metrics(run)])
    np.testing.assert_allclose(found[1], found[0], rtol=1e-4)
