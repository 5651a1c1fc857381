"""Corpora and stores that several tests share; a test that changes one makes a copy."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from antigram.pipeline.download.extract import Limits, unpacked
from antigram.pipeline.features.prepared import Prepared
from antigram.pipeline.storage.chunks import STRING, ArraySpec, encode, write_chunk
from antigram.pipeline.storage.exchange import export_file
from antigram.pipeline.storage.folder import Folder
from antigram.pipeline.storage.manifest import create_arrays, create_group, write_manifest
from tests.support import corpus_trees
from tests.support.stores import IDS, prepare_gsc


@pytest.fixture(scope="session")
def gsc_home(tmp_path_factory) -> Path:
    return corpus_trees.gsc(tmp_path_factory.mktemp("gsc"))


@pytest.fixture(scope="session")
def noise_home(tmp_path_factory) -> Path:
    return corpus_trees.noise(tmp_path_factory.mktemp("ms-snsd"))


@pytest.fixture(scope="session")
def clean(gsc_home, tmp_path_factory) -> Prepared:
    """A store of 24 segments of 3 words, without noise, float32."""
    return prepare_gsc(gsc_home, tmp_path_factory.mktemp("clean") / "gsc.zarr")


@pytest.fixture(scope="session")
def noisy(gsc_home, noise_home, tmp_path_factory) -> Prepared:
    """The same 24 segments with noise high, made by one worker."""
    target = tmp_path_factory.mktemp("noisy") / "gsc-high.zarr"
    return prepare_gsc(gsc_home, target, noise_home=noise_home)


@pytest.fixture
def store_copy(noisy, tmp_path) -> Path:
    """A copy of the noisy store, to be damaged."""
    return Path(shutil.copytree(noisy.store.path, tmp_path / "copy.zarr"))


@pytest.fixture(scope="session")
def half(gsc_home, tmp_path_factory) -> Prepared:
    """The segments of ``clean``, as float16."""
    return prepare_gsc(gsc_home, tmp_path_factory.mktemp("half") / "half.zarr", dtype="float16")


@pytest.fixture(scope="session")
def exported(clean, tmp_path_factory) -> Path:
    goal = tmp_path_factory.mktemp("exported") / "gsc.h5"
    export_file(clean.store.path, goal)
    return goal


@pytest.fixture
def copied(exported, tmp_path) -> Path:
    """A copy of the exported file, to be damaged."""
    return Path(shutil.copy(exported, tmp_path / "copy.h5"))


@pytest.fixture
def features(tmp_path) -> Path:
    """Folder for imported stores."""
    folder = tmp_path / "features"
    folder.mkdir()
    return folder


@pytest.fixture
def group(tmp_path, rng):
    """A group with a few rows: ``(folder, values)``."""
    values = {
        "numbers": rng.standard_normal((5, 3)).astype(np.float32),
        "whole": np.arange(5, dtype=np.int32),
        "text": IDS,
    }
    folder = tmp_path / "small.zarr"
    specs = [
        ArraySpec("numbers", (5, 3), "float32", 2),
        ArraySpec("whole", (5,), "int32", 5),
        ArraySpec("text", (5,), STRING, 2),
    ]
    create_group(Folder(folder), {"antigram": {"made": "by hand"}, "wide": "y" * 70_000})
    create_arrays(Folder(folder), specs)
    written = {
        spec.name: [
            write_chunk(Folder(folder), spec, i, encode(spec, i, values[spec.name][spec.span(i)]))
            for i in range(spec.chunks)
        ]
        for spec in specs
    }
    write_manifest(Folder(folder), written)
    return folder, values


@pytest.fixture
def unpack(tmp_path):
    """Return a function that extracts the bytes of an archive to ``tmp_path/inner/goal``."""

    def run(data, **limits):
        archive = tmp_path / "archive"
        archive.write_bytes(data)
        target = tmp_path / "inner" / "goal"
        target.parent.mkdir(exist_ok=True)
        with unpacked([archive], target, limits=Limits(**limits)) as tree:
            tree.rename(target)
        return target

    return run
