"""Local copies of what is in an object store: the same bytes, checked, shared, resumed, evicted."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from uuid import uuid4

import pytest

from antigram.pipeline.errors import DamagedError, InputError
from antigram.pipeline.features.folds import make_folds
from antigram.pipeline.features.store import FeatureStore
from antigram.pipeline.storage.local_copy import evict, local_copy
from antigram.pipeline.storage.manifest import read_manifest
from antigram.pipeline.storage.objects import Objects
from tests.support.files import bytes_of, flip
from tests.support.object_store import served, upload

obstore = pytest.importorskip("obstore", reason="the extra `s3` is not installed")
ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def server():
    with served() as url:
        yield url


@pytest.fixture
def address(server, store_copy) -> str:
    """Address of a store whose files are at ``store_copy``."""
    objects = upload(store_copy, f"s3://bucket/{uuid4().hex}/{store_copy.name}")
    return objects.address


@pytest.fixture
def viewed(monkeypatch) -> list[str]:
    """Keys of the objects that are downloaded to be copied."""
    keys: list[str] = []
    real = Objects.view

    def view(self, key, start=0, stop=None):
        keys.append(key)
        return real(self, key, start, stop)

    monkeypatch.setattr(Objects, "view", view)
    return keys


def test_a_copy_has_the_same_files_and_is_made_once(address, store_copy, tmp_path, viewed):
    lines: list[str] = []
    path = local_copy(address, tmp_path / "local", on_message=lines.append)
    assert path.name == store_copy.name
    assert bytes_of(path) == bytes_of(store_copy)
    assert FeatureStore(path).fingerprint == FeatureStore(store_copy).fingerprint
    assert len(viewed) == len(bytes_of(store_copy))
    assert local_copy(f"{address}/", tmp_path / "local", on_message=lines.append) == path
    assert len(viewed) == len(bytes_of(store_copy))
    assert len(lines) == 1


def test_a_download_goes_on_with_the_files_that_agree(address, store_copy, tmp_path, viewed):
    path = local_copy(address, tmp_path / "local")
    partial = path.with_name(f".{path.name}.partial")
    path.rename(partial)  # as if it had been killed
    chunks = sorted(partial.glob("features/c/*/0/0"))
    chunks[0].unlink()
    flip(chunks[1])
    viewed.clear()
    assert local_copy(address, tmp_path / "local") == path
    assert sorted(viewed) == [p.relative_to(partial).as_posix() for p in chunks[:2]]
    assert bytes_of(path) == bytes_of(store_copy)


def test_a_killed_download_is_resumed(address, store_copy, tmp_path):
    code = (
        "import os, signal\nfrom pathlib import Path\n"
        "from antigram.pipeline.storage import local_copy as module\n"
        "module._THREADS = 1\nreal, copied = module._Object.copy, []\n"
        "def copy(self):\n"
        "    real(self); copied.append(self)\n"
        "    if len(copied) == 5: os.kill(os.getpid(), signal.SIGKILL)\n"
        "module._Object.copy = copy\n"
        f"module.local_copy({address!r}, Path({str(tmp_path / 'local')!r}))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], check=False, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    assert done.returncode == -signal.SIGKILL
    (partial,) = (tmp_path / "local").glob("*/.*.partial")
    assert len(bytes_of(partial)) == 5
    path = local_copy(address, tmp_path / "local")
    assert bytes_of(path) == bytes_of(store_copy)
    assert not partial.exists()


def test_of_several_that_ask_at_once_one_downloads(address, store_copy, tmp_path, viewed):
    with ThreadPoolExecutor(4) as pool:
        paths = set(pool.map(lambda _: local_copy(address, tmp_path / "local"), range(4)))
    assert len(paths) == 1
    assert len(viewed) == len(bytes_of(store_copy))


@pytest.mark.parametrize("key", ["features/c/0/0/0", "features/zarr.json"])
def test_a_damaged_object_is_named_and_never_used(key, server, store_copy, tmp_path):
    flip(store_copy / key)
    objects = upload(store_copy, f"s3://bucket/{uuid4().hex}/{store_copy.name}")
    with pytest.raises(DamagedError, match=f"{objects.address}/{key}: damaged"):
        local_copy(objects.address, tmp_path / "local")
    assert not list((tmp_path / "local").glob(f"*/{store_copy.name}"))


@pytest.mark.parametrize("key", ["features/c/0/0/0", "zarr.json", "manifest/zarr.json"])
def test_a_missing_object_is_damage(key, server, store_copy, tmp_path):
    (store_copy / key).unlink()
    objects = upload(store_copy, f"s3://bucket/{uuid4().hex}/{store_copy.name}")
    with pytest.raises(DamagedError, match=f"{objects.address}/{key}: missing"):
        local_copy(objects.address, tmp_path / "local")


def test_names_that_lead_out_of_the_folder_are_refused(address, tmp_path, monkeypatch):
    def hostile(group):
        manifest = read_manifest(group)
        manifest.metadata["../../../outside"] = 0
        return manifest

    monkeypatch.setattr("antigram.pipeline.storage.local_copy.read_manifest", hostile)
    with pytest.raises(DamagedError, match="outside"):
        local_copy(address, tmp_path / "local")
    assert not list(tmp_path.rglob("outside"))


def test_where_nothing_lies_nothing_is_copied(server, tmp_path):
    with pytest.raises(InputError, match=r"s3://bucket/none\.zarr: no store or cache there"):
        local_copy("s3://bucket/none.zarr", tmp_path / "local")


def test_a_copy_without_room_is_refused_before_it_begins(address, tmp_path, monkeypatch, viewed):
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(InputError, match=r"`local_cache` .* needs .* GB, and 0\.0 GB are free"):
        local_copy(address, tmp_path / "local")
    assert viewed == []


def test_a_fold_comes_with_its_store(server, store_copy, tmp_path):
    folds = make_folds(FeatureStore(store_copy), "kfold:speaker:2", seed=0)
    prefix = f"s3://bucket/{uuid4().hex}"
    for path in (store_copy, *folds):
        upload(path, f"{prefix}/{path.name}")
    copied = FeatureStore(local_copy(f"{prefix}/{folds[0].name}", tmp_path / "local"))
    assert copied.fingerprint == FeatureStore(folds[0]).fingerprint
    assert copied.base.fingerprint == FeatureStore(store_copy).fingerprint


def test_other_content_at_an_address_gets_another_copy(address, store_copy, clean, tmp_path):
    first = local_copy(address, tmp_path / "local")
    for key, raw in bytes_of(clean.store.path).items():
        obstore.put(Objects.at(address)._opened(), key, raw)
    second = local_copy(address, tmp_path / "local")
    assert bytes_of(second) == bytes_of(clean.store.path)
    assert bytes_of(first) == bytes_of(store_copy)


def test_copies_that_nobody_asks_for_are_evicted(address, store_copy, tmp_path):
    other = upload(store_copy, f"s3://bucket/{uuid4().hex}/{store_copy.name}").address
    old, new = (local_copy(each, tmp_path / "local") for each in (address, other))
    long_ago = time.time() - 3 * 86_400
    os.utime(old.parent / "used", (long_ago, long_ago))
    assert evict(tmp_path / "local", 4) == []
    assert evict(tmp_path / "local", 2) == [old.parent]
    assert (old.exists(), new.exists()) == (False, True)
    assert bytes_of(local_copy(address, tmp_path / "local")) == bytes_of(store_copy)
