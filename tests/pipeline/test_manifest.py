from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

import antigram.pipeline.storage.verification
from antigram.pipeline.errors import DamagedError
from antigram.pipeline.storage.chunks import ArraySpec, chunk_path, encode, write_chunk
from antigram.pipeline.storage.folder import Folder
from antigram.pipeline.storage.manifest import (
    create_arrays,
    create_group,
    read_manifest,
)
from antigram.pipeline.storage.manifest import write_manifest as write
from antigram.pipeline.storage.verification import verify_group
from tests.support.files import flip

FEATURES = ArraySpec("features", (6, 2, 3), "float32", 4)
LABELS = ArraySpec("labels/word", (6,), "int32", 4, {"classes": ["no", "yes"]})


@pytest.fixture
def group(tmp_path) -> Path:
    """A group with two arrays of two chunks, small enough to flip every bit."""
    folder = tmp_path / "x.zarr"
    written = {}
    for spec, values in (
        (FEATURES, np.arange(36, dtype=np.float32).reshape(6, 2, 3)),
        (LABELS, np.array([0, 1, 0, -1, 1, 1], np.int32)),
    ):
        written[spec.name] = [
            write_chunk(Folder(folder), spec, i, encode(spec, i, values[spec.span(i)]))
            for i in range(2)
        ]
    create_group(Folder(folder), {"antigram": {"format": "test"}})
    create_group(Folder(folder / "labels"), {})
    create_arrays(Folder(folder), [FEATURES, LABELS])
    write(Folder(folder), written)
    return folder


def problems(folder: Path) -> dict[str, str]:
    return {p.path.relative_to(folder).as_posix(): p.problem for p in verify_group(Folder(folder))}


def files(folder: Path) -> list[Path]:
    return sorted(p for p in folder.rglob("*") if p.is_file())


def test_a_whole_group_has_no_problem(group):
    assert problems(group) == {}
    assert len(files(group)) == 2 + 2 + 5


@pytest.mark.parametrize(
    "name",
    [
        "features/c/1/0/0",
        "labels/word/c/0",
        "zarr.json",
        "labels/zarr.json",
        "labels/word/zarr.json",
        "features/zarr.json",
    ],
)
def test_a_flipped_bit_is_found_wherever_it_is(name, group):
    path = group / name
    whole = path.read_bytes()
    for place in range(len(whole)):
        flip(path, place, place % 8)
        assert name in problems(group), f"byte {place}"
        path.write_bytes(whole)


def test_a_flipped_bit_of_the_manifest_is_found_wherever_it_is(group):
    path = group / "manifest" / "zarr.json"
    whole = path.read_bytes()
    unseen = []
    for place in range(len(whole)):
        for bit in (place % 8, (place + 3) % 8):
            flip(path, place, bit)
            try:
                read_manifest(Folder(group))
            except DamagedError:
                pass
            else:
                unseen.append((place, bit, path.read_bytes()[max(0, place - 12) : place + 12]))
            path.write_bytes(whole)
    assert not unseen, f"{len(unseen)} of {2 * len(whole)} flips were not seen: {unseen[:3]}"


@pytest.mark.parametrize("keep", [0, 1, 4, 5, -4, -1])
def test_a_file_cut_off_anywhere_is_found(keep, group):
    for path in files(group):
        whole = path.read_bytes()
        path.write_bytes(whole[:keep])
        assert path.relative_to(group).as_posix() in problems(group)
        path.write_bytes(whole)
    assert problems(group) == {}


def test_a_file_that_grew_is_found(group):
    for path in files(group):
        whole = path.read_bytes()
        path.write_bytes(whole + b"\0")
        assert path.relative_to(group).as_posix() in problems(group)
        path.write_bytes(whole)


def test_a_deleted_file_is_found(group):
    for path in files(group):
        whole = path.read_bytes()
        path.unlink()
        assert "missing" in problems(group)[path.relative_to(group).as_posix()]
        path.write_bytes(whole)


def test_a_deleted_array_is_found(group):
    shutil.rmtree(group / "labels")
    assert set(problems(group)) == {
        "labels/zarr.json", "labels/word/zarr.json", "labels/word/c/0", "labels/word/c/1",
    }  # fmt: skip


def test_an_emptied_chunk_is_found_and_called_so(group):
    chunk_path(group, FEATURES, 0).write_bytes(b"")
    assert problems(group) == {"features/c/0/0/0": "empty"}


def test_two_swapped_chunks_are_both_found(group):
    one, two = (chunk_path(group, FEATURES, i) for i in range(2))
    first, second = one.read_bytes(), two.read_bytes()
    one.write_bytes(second)
    two.write_bytes(first)
    found = problems(group)
    assert set(found) == {"features/c/0/0/0", "features/c/1/0/0"}
    assert all("another chunk or an older version" in text for text in found.values())


def test_an_older_version_of_a_chunk_with_its_own_checksum_is_found(group):
    write_chunk(Folder(group), FEATURES, 0, encode(FEATURES, 0, np.zeros((4, 2, 3), np.float32)))
    assert list(problems(group)) == ["features/c/0/0/0"]


def test_a_manifest_of_another_group_is_found(group, tmp_path):
    other = Path(shutil.copytree(group, tmp_path / "other.zarr"))
    chunk = write_chunk(Folder(other), LABELS, 0, encode(LABELS, 0, np.ones(4, np.int32)))
    manifest = read_manifest(Folder(group))
    assert chunk.crc32c not in manifest.crcs("labels/word")
    shutil.copy(group / "manifest" / "zarr.json", other / "manifest" / "zarr.json")
    assert list(problems(other)) == ["labels/word/c/0"]


@pytest.mark.parametrize(
    "name", ["notes.txt", "features/c/2/0/0", "features/c/0/0/0.12.partial", "manifest/x", ".x"]
)
def test_a_foreign_file_is_found(name, group):
    path = group / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x")
    assert problems(group) == {name: "unknown file: antigram did not write it"}


def test_a_directory_in_the_place_of_a_chunk_is_found(group):
    path = chunk_path(group, LABELS, 1)
    path.unlink()
    path.mkdir()
    assert list(problems(group)) == ["labels/word/c/1"]


def test_a_manifest_gives_the_checksum_of_each_chunk_by_index(group):
    manifest = read_manifest(Folder(group))
    for spec in (FEATURES, LABELS):
        tails = [chunk_path(group, spec, i).read_bytes()[-4:] for i in range(2)]
        assert manifest.crcs(spec.name) == [int.from_bytes(tail, "little") for tail in tails]
    assert set(manifest.digests()) == {"features", "labels/word"}


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"null", b"{}", b'{"attributes":{}}', b"\xff"]
)
def test_a_manifest_that_is_none_is_refused(content, group):
    (group / "manifest" / "zarr.json").write_bytes(content)
    with pytest.raises(DamagedError, match="unreadable"):
        read_manifest(Folder(group))
    assert list(problems(group)) == ["manifest/zarr.json"]


@pytest.mark.parametrize("part_bytes", [1, 200, 1 << 20])
def test_chunks_that_are_verified_together_are_reported_one_by_one(part_bytes, group, monkeypatch):
    monkeypatch.setattr(antigram.pipeline.storage.verification, "_PART_BYTES", part_bytes)
    assert problems(group) == {}
    flip(group / "features" / "c" / "1" / "0" / "0", 9)
    (group / "labels" / "word" / "c" / "0").unlink()
    found = problems(group)
    assert set(found) == {"features/c/1/0/0", "labels/word/c/0"}
    assert found["labels/word/c/0"] == "missing"


def test_a_folder_is_listed_in_the_order_of_names_without_links_to_folders(tmp_path):
    for name in ("b/2/x", "b/10", "a", "b-c/1", ".hidden"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(name.encode())
    (tmp_path / "link").symlink_to(tmp_path / "b")
    (tmp_path / "broken").symlink_to(tmp_path / "none")
    (tmp_path / "file link").symlink_to(tmp_path / "a")
    keys = [entry.key for entry in Folder(tmp_path).list()]
    assert keys == [".hidden", "a", "b/10", "b/2/x", "b-c/1", "file link"]
    assert [entry.size for entry in Folder(tmp_path).list()] == [7, 1, 4, 5, 5, 1]
    assert list(Folder(tmp_path / "none").list()) == []
