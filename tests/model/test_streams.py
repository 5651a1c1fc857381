"""Each seed has its own weights, batch orders and masks, which never change."""

import hashlib

import numpy as np
import pytest
import torch

import antigram.model.training.train
from antigram.model.training.batches import Batches
from antigram.model.training.config import TrainConfig
from antigram.model.training.streams import FirstStreams, Streams
from antigram.model.training.student import build_student
from antigram.model.training.train import train
from antigram.pipeline.errors import InputError
from tests.support.nets import CPU, VGG11

LAST = 2**63 - 1


@pytest.fixture
def orders(store, config, tmp_path, monkeypatch):
    """Return the clips of each training epoch of a seed, in their order."""

    def run(seed):
        seen = []

        class Noting(Batches):
            def passes(self, rows, epoch=0):
                if epoch:
                    seen.append(list(rows))
                return super().passes(rows, epoch)

        monkeypatch.setattr(antigram.model.training.train, "Batches", Noting)
        given = config(seed=seed, epochs=2, patience=9)
        net = build_student(given, 3, None)
        train(net, store, None, given, tmp_path / f"seed{seed}", device=CPU)
        assert sorted(seen[0]) == sorted(seen[1]) == sorted(store.rows("train", "label"))
        return [tuple(order) for order in seen]

    return run


def test_seeds_2_to_the_32_apart_differ_in_weights(config):
    one, two = (build_student(config(seed=seed), 3, None).state_dict() for seed in (0, 2**32))
    for name, tensor in one.items():
        if name.endswith("weight"):
            assert not torch.equal(tensor, two[name]), name


@pytest.mark.parametrize("seed", [4096, 2**32], ids=["4096", "2^32"])
def test_far_seeds_share_no_order_of_batches(orders, seed):
    assert len({*orders(0), *orders(seed)}) == 4


def test_a_seed_is_0_to_2_to_the_63_less_1(config):
    assert (
        len(
            {
                build_student(config(seed=s), 3, None).classifier[0].weight.sum()
                for s in (0, LAST - 1, LAST)
            }
        )
        == 3
    )
    for seed in (-1, LAST + 1):
        with pytest.raises(InputError, match=rf"`seed` {seed}: wanted 0 to {LAST}"):
            TrainConfig(mode="baseline", task="label", arch=VGG11, seed=seed)


def test_an_order_is_sorted_by_raw_output_of_pcg64_seeded_from_sha256():
    rows = np.arange(100, 140)
    for seed, epoch in ((0, 1), (0, 2), (LAST, 1)):
        raw = hashlib.sha256(f"{seed}\0batches\0{epoch}".encode()).digest()
        generator = np.random.PCG64(int.from_bytes(raw[:8], "little"))
        keys = [int(generator.random_raw()) for _ in rows]
        want = [row for _, row in sorted(zip(keys, rows.tolist(), strict=True))]
        torch.manual_seed(epoch)  # a state that must have no effect
        assert Streams(seed).order(rows, epoch).tolist() == want


def test_masks_differ_by_seed_epoch_and_process():
    drawn = set()
    places = [(s, e, r, n) for s in (0, 2**32) for e in (1, 2) for r, n in ((0, 1), (0, 2), (1, 2))]
    for seed, *place in places:
        Streams(seed).begin_epoch(*place)
        drawn.add(tuple(torch.rand(4).tolist()))
    assert len(drawn) == len(places)


def test_runs_of_version_1_keep_the_orders_they_began_with():
    # As in runs of version 1.
    found = FirstStreams(3).order(np.arange(8), 2).tolist()
    assert found == [6, 1, 7, 3, 2, 0, 5, 4]
