"""Corpora and stores that several tests read; a test that changes one takes a copy."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from antigram.pipeline.features.preparation import Prepared
from tests.pipeline import trees
from tests.pipeline.small import prepare_gsc


@pytest.fixture(scope="session")
def gsc_home(tmp_path_factory) -> Path:
    return trees.gsc(tmp_path_factory.mktemp("gsc"))


@pytest.fixture(scope="session")
def noise_home(tmp_path_factory) -> Path:
    return trees.noise(tmp_path_factory.mktemp("ms-snsd"))


@pytest.fixture(scope="session")
def clean(gsc_home, tmp_path_factory) -> Prepared:
    """24 clips of 3 words, no noise, float32."""
    return prepare_gsc(gsc_home, tmp_path_factory.mktemp("clean") / "gsc.zarr")


@pytest.fixture(scope="session")
def noisy(gsc_home, noise_home, tmp_path_factory) -> Prepared:
    """The same 24 clips, noise high, one worker."""
    target = tmp_path_factory.mktemp("noisy") / "gsc-high.zarr"
    return prepare_gsc(gsc_home, target, noise_home=noise_home)


@pytest.fixture
def store_copy(noisy, tmp_path) -> Path:
    """A copy of the noisy store, to be damaged."""
    return Path(shutil.copytree(noisy.store.path, tmp_path / "copy.zarr"))
