"""Fixtures that every test folder may use."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile

from tests.support.shell import audio, chain, first_chain, shell  # noqa: F401 - for all tests


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(20210606)


@pytest.fixture(scope="session")
def write_wav() -> Callable[..., Path]:
    """``write_wav(path, samples, rate=16_000, subtype="PCM_16")``; makes the folders on the way."""

    def write(path: Path, samples, rate: int = 16_000, subtype: str = "PCM_16") -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, samples, rate, subtype=subtype)
        return path

    return write


@pytest.fixture(scope="session")
def corpora() -> Path:
    """The folder of the real recordings."""
    folder = os.environ.get("ANTIGRAM_CORPORA")
    if not folder:
        pytest.skip("needs real recordings: set ANTIGRAM_CORPORA")
    if not Path(folder).is_dir():
        pytest.skip(f"ANTIGRAM_CORPORA={folder} is not a folder")
    return Path(folder)


@pytest.fixture(scope="session")
def one_thread() -> Iterator[None]:
    """Run torch in one thread: tiny networks are faster with one."""
    import torch  # here, as tests of the pipeline do without

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
