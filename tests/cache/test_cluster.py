"""A cache that workers of a Dask cluster build: the bytes of a local one, after any death."""

import os
import signal
import time
from typing import Any

import pytest

from antigram.cache.build import build_cache
from antigram.cache.plan import plan_layers
from antigram.model.loss.sources import TapSpec
from antigram.pipeline.audio.augmentation import Views
from antigram.pipeline.errors import InputError
from antigram.pipeline.execution.dask_cluster import DaskCluster
from tests.support.dask_clusters import cluster_of
from tests.support.files import bytes_of
from tests.support.nets import CPU, LAYERS, VGG16

pytest.importorskip("distributed", reason="the extra `dask` is not installed")


class Stopped(Exception):
    pass


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    with (
        cluster_of(2, tmp_path_factory.mktemp("dask")) as running,
        DaskCluster(str(running.file)) as opened,
    ):
        while opened.count < 2:
            time.sleep(0.1)
        yield opened


@pytest.fixture
def build_at(store, teacher):
    """Build a cache at a path, here or on a cluster."""

    def run(target, *, codec="auto", views=None, ticks=lambda *_: None, **given):
        spec = TapSpec(arch=VGG16, layers=LAYERS)
        return build_cache(
            store,
            teacher,
            plan_layers(store, teacher, spec, codec=codec, views=views),
            target,
            made_from={},
            batch_clips=4,
            device=CPU,
            on_progress=ticks,
            **given,
        )

    return run


@pytest.mark.parametrize("form", ["exact", "lowrank", "views"])
def test_a_cache_has_the_bytes_of_a_local_one(form, cluster, store, build_at, tmp_path):
    forms: dict[str, dict[str, Any]] = {
        "exact": {},
        "lowrank": {"codec": "lowrank"},
        "views": {"views": Views.for_shape(store.shape, count=2, seed=0)},
    }
    given = forms[form]
    local = build_at(tmp_path / "local.zarr", **given)
    done = build_at(tmp_path / "dask.zarr", cluster=cluster, **given)
    assert done.computed == local.computed == 15
    assert bytes_of(tmp_path / "dask.zarr") == bytes_of(tmp_path / "local.zarr")
    assert [path.name for path in tmp_path.iterdir() if "partial" in path.name] == []
    assert build_at(tmp_path / "dask.zarr", cluster=cluster, **given).computed == 0


def test_a_killed_worker_changes_no_byte(cluster, build_at, tmp_path):
    killed = []

    def ticks(_stage, done, _total):
        if done and not killed:
            killed.append(next(iter(cluster.client.run(os.getpid).values())))
            os.kill(killed[0], signal.SIGKILL)

    build_at(tmp_path / "local.zarr")
    build_at(tmp_path / "dask.zarr", cluster=cluster, ticks=ticks)
    assert killed
    assert bytes_of(tmp_path / "dask.zarr") == bytes_of(tmp_path / "local.zarr")


@pytest.mark.parametrize("first", ["cluster", "local"])
def test_either_kind_of_build_resumes_the_other(first, cluster, build_at, tmp_path):
    def ticks(_stage, done, _total):
        if done >= 4:
            raise Stopped

    build_at(tmp_path / "local.zarr")
    order = (cluster, None) if first == "cluster" else (None, cluster)
    with pytest.raises(Stopped):
        build_at(tmp_path / "dask.zarr", cluster=order[0], ticks=ticks)
    assert build_at(tmp_path / "dask.zarr", cluster=order[1]).computed < 15
    assert bytes_of(tmp_path / "dask.zarr") == bytes_of(tmp_path / "local.zarr")


def test_a_damaged_chunk_alone_is_built_again(cluster, build_at, tmp_path):
    target = tmp_path / "dask.zarr"
    build_at(target)
    intact = bytes_of(target)
    chunk = next((target / "layer05").glob("*/c/1/*/0"), None) or next(
        (target / "layer05").glob("*/c/1/0")
    )
    chunk.write_bytes(bytes(chunk.stat().st_size))
    assert build_at(target, cluster=cluster).computed == 4
    assert bytes_of(target) == intact


def test_what_a_cluster_cannot_run_is_refused(cluster, store, teacher, tmp_path):
    plans = plan_layers(store, teacher, TapSpec(arch=VGG16, layers=(5,)), control="mean-gram")
    with pytest.raises(InputError, match="`scheduler`: its workers run networks of checkpoints"):
        build_cache(
            store, teacher, plans, tmp_path / "x.zarr", made_from={}, device=CPU, cluster=cluster
        )
