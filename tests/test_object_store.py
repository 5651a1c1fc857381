"""The command line on addresses of an object store: training, verification, refusals."""

from __future__ import annotations

import json
from pathlib import Path
from uuid import uuid4

import pytest

from antigram.model.training.checkpoint import load_checkpoint
from tests.support.files import flip
from tests.support.object_store import served, upload

TRAIN = ("train", "--mode", "cached", "--arch", "vgg11", "--width", "1", "--epochs", 2)


@pytest.fixture(scope="module")
def server():
    with served() as url:
        yield url


@pytest.fixture
def prefix(server) -> str:
    """An address with nothing below it."""
    return f"s3://bucket/{uuid4().hex}"


@pytest.fixture
def stored(chain, prefix):
    """The shell of `chain`, and the addresses of its store and its cache in an object store."""
    (cache,) = Path("workspace/grams").glob("*.zarr")
    store = upload(Path("workspace/features/tones.zarr"), f"{prefix}/features/tones.zarr")
    return chain, store.address, upload(cache, f"{prefix}/grams/{cache.name}").address


def test_a_training_on_addresses_has_the_numbers_of_a_local_one(stored):
    shell, store, cache = stored
    want = shell.json(*TRAIN, "--name", "here")
    data = ("--data", store, "--cache", cache, "--local-cache", "local")
    got = shell.json(*TRAIN, *data, "--name", "there")
    for field in ("accuracy", "confusion", "features", "data", "scores", "epochs"):
        assert got[field] == want[field], field
    here, there = (
        load_checkpoint(Path("workspace/runs") / name / "best.pt").state_dict
        for name in ("here", "there")
    )
    assert all(here[name].equal(there[name]) for name in here)
    assert got["addresses"] == {"tones": store, Path(cache).stem: cache}
    kept = json.loads(Path("workspace/runs/there/result.json").read_text())
    assert kept["addresses"] == got["addresses"]
    assert "addresses" not in want


def test_an_address_needs_a_folder_for_its_copy(stored):
    shell, store, _ = stored
    shell.refused(
        2, r"local copy: name a folder for it, --local-cache DIR", *TRAIN, "--data", store
    )
    shell.refused(2, "--evict-days goes with --local-cache", *TRAIN, "--evict-days", 1)


def test_what_is_not_there_is_said_in_a_line(stored):
    shell, store, _ = stored
    local = ("--local-cache", "local")
    shell.refused(2, "no store or cache there", *TRAIN, "--data", f"{store}x", *local)
    shell.refused(2, "no such bucket", *TRAIN, "--data", "s3://no-such-one/a.zarr", *local)


def test_store_and_cache_are_verified_where_they_are(stored):
    shell, store, cache = stored
    done = shell.json("verify", store, cache)
    assert (done["ok"], done["checked"]) == (True, [store, cache])
    shell.refused(2, "no feature store there", "verify", f"{store}x")


def test_damage_in_an_object_store_is_named(chain, prefix):
    store = Path("workspace/features/tones.zarr")
    flip(store / "features/c/0/0/0")
    address = upload(store, f"{prefix}/tones.zarr").address
    code, out, _ = chain("verify", address, "--json")
    (problem,) = json.loads(out)["problems"]
    assert (code, problem["path"]) == (3, f"{address}/features/c/0/0/0")
    train = ("train", "--mode", "baseline", "--arch", "vgg11", "--width", "1", "--epochs", 1)
    data = ("--data", address, "--local-cache", "local")
    chain.refused(3, f"{address}/features/c/0/0/0: damaged", *train, *data)
