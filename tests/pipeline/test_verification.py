"""Verification by sizes and a sample, for stores that take hours to read."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from antigram.pipeline.storage import verification
from antigram.pipeline.storage.chunks import STRING, ArraySpec, chunk_path, encode, write_chunk
from antigram.pipeline.storage.folder import Folder
from antigram.pipeline.storage.manifest import create_arrays, create_group, write_manifest
from antigram.pipeline.storage.verification import is_unchanged, verify_group
from tests.support.files import flip

ROWS = ArraySpec("features", (40, 3), "float32", 2)
TEXT = ArraySpec("clip_id", (40,), STRING, 32)
HERE = Path()
SOME = chunk_path(HERE, ROWS, 7)


@pytest.fixture
def group(tmp_path) -> Folder:
    group = Folder(tmp_path / "group")
    values = {"features": np.arange(120, dtype=np.float32).reshape(40, 3), "clip_id": ["ab"] * 40}
    written = {
        spec.name: [
            write_chunk(group, spec, i, encode(spec, i, values[spec.name][spec.span(i)]))
            for i in range(spec.chunks)
        ]
        for spec in (ROWS, TEXT)
    }
    create_group(group, {})
    create_arrays(group, [ROWS, TEXT])
    write_manifest(group, written)
    return group


@pytest.mark.parametrize("sample", [None, 0, 5, 22, 1_000])
def test_an_intact_group_has_no_problem(sample, group):
    assert list(verify_group(group, sample=sample)) == []


@pytest.mark.parametrize("sample", [0, 22])
@pytest.mark.parametrize(
    ("damage", "path", "says"),
    [
        ("unlink", SOME, "missing"),
        ("truncate", SOME, "20 bytes, wanted 28"),
        ("truncate", chunk_path(HERE, TEXT, 1), "4 bytes, no text"),
        ("flip", "features/zarr.json", "not as it was written"),
        ("flip", "manifest/zarr.json", "digest|unreadable"),
        ("add", "features/c/99", "unknown file"),
    ],
)
def test_what_is_seen_without_reading_chunks_is_always_found(damage, path, says, sample, group):
    target = group.path / path
    match damage:
        case "unlink":
            target.unlink()
        case "truncate":
            target.write_bytes(target.read_bytes()[: 4 if "clip_id" in str(path) else -8])
        case "flip":
            flip(target, 20)
        case _:
            target.write_bytes(b"x")
    (problem,) = [p for p in verify_group(group, sample=sample) if p.path == target]
    assert re.search(says, problem.problem)
    assert not is_unchanged(group)


def test_a_flipped_bit_is_found_if_its_chunk_is_drawn(group):
    flip(group.path / SOME, 9)
    assert list(verify_group(group, sample=0)) == []
    (problem,) = verify_group(group, sample=22)
    assert (problem.path, problem.problem[:7]) == (group.path / SOME, "damaged")
    found = sum(len(list(verify_group(group, sample=11))) for _ in range(40))
    assert 2 <= found <= 38  # of 22 chunks; 4 in a million runs fail here by chance


def test_of_a_large_group_a_sample_is_read_and_of_a_small_one_all(group, monkeypatch):
    monkeypatch.setattr(verification, "_SAMPLE", 0)
    flip(group.path / SOME, 9)
    assert not is_unchanged(group)
    monkeypatch.setattr(verification, "_MOST_READ", 100)
    assert is_unchanged(group)
    assert not is_unchanged(group, check_all=True)
    shutil.rmtree(group.path / "features" / "c" / "7")
    assert not is_unchanged(group)
