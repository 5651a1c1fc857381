"""What `backend` promises, held against each backend; readers work on any of them."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import pytest

from antigram.pipeline.errors import DamagedError, InputError
from antigram.pipeline.features.store import FeatureStore
from antigram.pipeline.storage import backend
from antigram.pipeline.storage.backend import (
    Backend,
    OverwrittenError,
    RowLayout,
    RowView,
    Store,
    WrongSizeError,
)
from antigram.pipeline.storage.chunks import (
    CRC_BYTES,
    STRING,
    ArraySpec,
    chunk_key,
    crc32c,
    encode,
    is_intact,
    write_chunk,
)
from antigram.pipeline.storage.exchange import export_file
from antigram.pipeline.storage.folder import Folder
from antigram.pipeline.storage.hdf5 import ExportedFile
from antigram.pipeline.storage.manifest import (
    create_arrays,
    create_group,
    inner_groups,
    read_manifest,
    write_manifest,
)
from antigram.pipeline.storage.mapped import MappedArray
from antigram.pipeline.storage.objects import Objects
from antigram.pipeline.storage.opening import open_backend
from antigram.pipeline.storage.root import has_parts, read_root
from antigram.pipeline.storage.verification import verify_group
from tests.support.files import bytes_of
from tests.support.memory_backend import Memory
from tests.support.object_store import served, upload

ROWS = ArraySpec("features", (11, 3, 5), "float32", 4)
BYTES = ArraySpec("split", (7,), "int8", 3)  # so that what follows lies at odd addresses
TEXT = ArraySpec("clip_id", (5,), STRING, 2)
GRAM = ArraySpec("gram", (6, 9), "float16", 2)
LAYOUT = RowLayout(ROWS.rows, ROWS.row_bytes, CRC_BYTES)
KEYS = [chunk_key(ROWS, index) for index in range(ROWS.chunks)]
ROOT = {"antigram": {"format": "antigram/test", "format_version": 1}}

VALUES: dict[str, Any] = {
    "features": np.arange(165, dtype=np.float32).reshape(ROWS.shape) / 7,
    "split": np.arange(7, dtype=np.int8),
    "clip_id": ["", "naïve", "日本/a", "x" * 50, "z"],
    "gram": np.arange(54, dtype=np.float16).reshape(GRAM.shape),
}


def fill(group: Store, *specs: ArraySpec, root: dict = ROOT) -> None:
    written = {
        spec.name: [
            write_chunk(group, spec, i, encode(spec, i, VALUES[spec.name][spec.span(i)]))
            for i in range(spec.chunks)
        ]
        for spec in specs
    }
    create_group(group, root)
    create_arrays(group, specs)
    write_manifest(group, written)


def opened(kind: str, folder: Path) -> Backend:
    """A group in a folder as a backend of another kind."""
    match kind:
        case "folder":
            return open_backend(folder)
        case "hdf5":
            file = folder.with_suffix(".h5")
            export_file(folder, file)
            return open_backend(file)
        case "objects":
            return upload(folder, f"s3://bucket/{uuid4().hex}/{folder.name}")
        case _:
            return Memory(bytes_of(folder))


@pytest.fixture(scope="module")
def server():
    with served() as url:
        yield url


@pytest.fixture(params=["folder", "hdf5", "memory", "objects"])
def kind(request) -> str:
    if request.param == "objects":
        request.getfixturevalue("server")
    return request.param


@pytest.fixture
def folder(tmp_path) -> Path:
    root = Folder(tmp_path / "group.zarr")
    fill(root.below("layer05"), GRAM)
    fill(root, ROWS, BYTES, TEXT)
    return root.path


@pytest.fixture
def group(kind, folder) -> Backend:
    return opened(kind, folder)


def rows_of(group: Backend, *chunks: int) -> RowView:
    view = group.view_rows(ROWS.name, KEYS, LAYOUT)
    for index in chunks:
        view.open(index)
    return view


class TestContract:
    """Every backend gives the same keys and bytes, wherever it stores its objects."""

    def test_its_kind_is_told_by_the_path(self, kind, group):
        kinds = {"folder": Folder, "hdf5": ExportedFile, "memory": Memory, "objects": Objects}
        assert type(group) is kinds[kind]

    def test_every_object_is_got_as_it_was_put(self, group, folder):
        for key, raw in bytes_of(folder).items():
            assert group.get(key) == raw, key

    def test_every_object_is_listed_sorted_with_its_size(self, group, folder):
        want = {key: len(raw) for key, raw in bytes_of(folder).items()}
        listed = list(group.list())
        assert {entry.key: entry.size for entry in listed} == want
        assert [e.key for e in listed] == sorted(want, key=lambda key: key.split("/"))

    def test_an_object_is_looked_at_as_it_is_listed(self, group):
        for entry in group.list():
            assert group.head(entry.key) == entry

    @pytest.mark.parametrize(
        "key", ["none", "features", "features/c/3/0/0", "features/c/0/0", "none/c/0", "split/c/0/0"]
    )
    def test_what_is_not_there_is_missed(self, key, group):
        for read in (group.get, group.view):
            with pytest.raises(OSError, match=r".") as raised:
                read(key)
            assert raised.value.filename == group.where(key)
        assert key not in {entry.key for entry in group.list()}

    @pytest.mark.parametrize("span", [(0, None), (0, 0), (8, 24), (239, 244), (0, 240)], ids=str)
    def test_a_part_of_an_object_is_viewed_and_cannot_be_changed(self, span, group, folder):
        for key in (*KEYS, "zarr.json", "clip_id/c/1"):
            raw = (folder / key).read_bytes()
            part = group.view(key, *span)
            assert part.tobytes() == raw[slice(*span)], key
            with pytest.raises(ValueError, match="read-only"):
                part[:] = 0

    def test_groups_have_keys_of_their_own(self, group, folder):
        assert group.groups() == ["clip_id", "features", "layer05", "manifest", "split"]
        layer = group.below("layer05")
        want = bytes_of(folder / "layer05")
        assert {entry.key for entry in layer.list()} == set(want)
        assert {key: layer.get(key) for key in want} == want
        assert layer.view("gram/c/1/0").tobytes() == want["gram/c/1/0"]
        assert layer.where("gram") == group.where("layer05/gram")
        assert layer.groups() == ["gram", "manifest"]

    def test_rows_of_all_objects_lie_at_equal_distances(self, group):
        view = rows_of(group, *range(ROWS.chunks))
        rows = np.arange(len(VALUES["features"]))
        if view.table is None:  # rows are downloaded one object at a time
            assert isinstance(group, Objects)
            return
        table = view.table[rows + rows // ROWS.rows * (view.apart - ROWS.rows)]
        np.testing.assert_array_equal(table.view("<f4").reshape(ROWS.shape), VALUES["features"])

    @pytest.mark.parametrize("mapped", [True, False])
    def test_any_bytes_of_an_object_are_read(self, mapped, group, folder):
        view = group.view_rows(ROWS.name, KEYS, LAYOUT, mapped=mapped)
        for index, key in enumerate(KEYS):
            view.open(index)
            raw = view.part(index).tobytes()
            assert raw == (folder / key).read_bytes()[:-CRC_BYTES]
            for offsets in ([60, 0, 120, 120], [60, 80, 100], []):
                got = view.read(index, np.array(offsets, np.int64), 20)
                assert got.shape == (len(offsets), 20)
                assert got.tobytes() == b"".join(raw[at : at + 20] for at in offsets)

    @pytest.mark.parametrize("mapped", [True, False])
    def test_what_is_expected_and_fetched_is_read_as_ever(self, mapped, group, folder):
        view = group.view_rows(ROWS.name, KEYS, LAYOUT, mapped=mapped)
        for index, key in enumerate(KEYS):
            view.open(index)
            view.expect(index, 20, 60)
            view.expect(index, 0, LAYOUT.data)
            view.fetch(index)
            assert view.part(index).tobytes() == (folder / key).read_bytes()[:-CRC_BYTES]

    def test_the_part_of_an_object_is_its_rows_and_their_padding(self, group, folder):
        view = rows_of(group, *range(ROWS.chunks))
        for index, key in enumerate(KEYS):
            assert view.part(index).tobytes() == (folder / key).read_bytes()[:-CRC_BYTES]

    def test_nothing_has_happened_to_objects_that_nobody_touches(self, group):
        assert rows_of(group, 0, 2).look(range(ROWS.chunks), lambda _: False) == []

    def test_it_travels_to_another_process(self, group, folder):
        copy = pickle.loads(pickle.dumps(group.below("layer05")))
        assert copy.get("zarr.json") == (folder / "layer05" / "zarr.json").read_bytes()

    def test_what_lies_there_now_is_opened_again(self, group):
        assert list(group.reopened().list()) == list(group.list())


class TestReaders:
    """They are given a backend, and find the same in all."""

    def test_arrays_are_read_as_written(self, group):
        crcs = read_manifest(group).crcs
        array = MappedArray(group, "features", crcs("features"), "Repair.")
        rows = np.array([10, 0, 5, 5, 3])
        for _ in range(3):  # before and after all chunks were touched
            np.testing.assert_array_equal(array.take(rows), VALUES["features"][rows])
            array.read()
        out = np.empty((5, 3, 5), np.float32)
        assert array.take(rows, out=out) is out
        np.testing.assert_array_equal(out, VALUES["features"][rows])
        small = MappedArray(group, "split", crcs("split"), "Repair.")
        np.testing.assert_array_equal(small.read(), VALUES["split"])
        np.testing.assert_array_equal(small.take([6, 0]), [6, 0])
        text = MappedArray(group, "clip_id", crcs("clip_id"), "Repair.")
        assert text.read_text() == VALUES["clip_id"]
        array.hold()
        assert array.look() == []

    @pytest.mark.parametrize("dtype", ["float32", "float64"])
    def test_rows_are_taken_into_any_memory(self, dtype, group):
        array = MappedArray(group, "features", read_manifest(group).crcs("features"), "Repair.")
        array.read()
        out = np.zeros((2, 5, 3), dtype).transpose(0, 2, 1)
        array.take([7, 9], out=out)
        np.testing.assert_array_equal(out, VALUES["features"][[7, 9]].astype(dtype))

    def test_a_layer_is_read_below_its_key(self, group):
        assert inner_groups(group) == ["layer05"]
        layer = group.below("layer05")
        array = MappedArray(layer, "gram", read_manifest(layer).crcs("gram"), "Repair.")
        np.testing.assert_array_equal(array.read(), VALUES["gram"])

    def test_an_intact_group_has_no_problem(self, group):
        assert list(verify_group(group)) == []
        assert list(verify_group(group.below("layer05"))) == []

    def test_the_root_is_read(self, group):
        assert has_parts(group)
        assert read_root(group, "antigram/test", 1, "test") == ROOT["antigram"]
        with pytest.raises(InputError, match=r"not a test|no test"):
            read_root(group.below("split"), "antigram/test", 1, "test")

    def test_intact_chunks_are_told_from_others(self, group, folder):
        size, raw = LAYOUT.data, (folder / KEYS[1]).read_bytes()
        assert is_intact(group, KEYS[1], size, crc32c(raw[:-CRC_BYTES]))
        assert not is_intact(group, KEYS[0], size, crc32c(raw[:-CRC_BYTES]))
        assert not is_intact(group, "none/c/0", size, 0)

    @pytest.mark.parametrize(
        "kind", ["folder", "memory", "objects"], indirect=True
    )  # of hdf5: test_exchange.py
    def test_an_array_of_other_rows_than_its_document_is_refused(self, kind, folder):
        path = folder / "features" / "zarr.json"
        crcs = read_manifest(Folder(folder)).crcs("features")
        path.write_text(path.read_text().replace("float32", "float16"))
        with pytest.raises(DamagedError, match="features/c/0/0/0: 244 bytes, wanted 124"):
            MappedArray(opened(kind, folder), "features", crcs, "Repair.")

    def test_a_store_is_read_from_any_backend(self, kind, store_copy):
        want, got = FeatureStore(store_copy), FeatureStore("x.zarr", opened(kind, store_copy))
        assert got.fingerprint == want.fingerprint
        assert got.clip_ids == want.clip_ids
        np.testing.assert_array_equal(got.features.read(), want.features.read())


class TestChanges:
    """What others do to a folder or an exported file in use."""

    @pytest.fixture(params=["folder", "hdf5"])
    def kind(self, request) -> str:
        return request.param

    @pytest.fixture
    def path(self, kind, group, folder) -> Path:
        """The file that holds the first rows."""
        return folder / KEYS[0] if kind == "folder" else folder.with_suffix(".h5")

    def test_a_write_gives_an_object_another_identity(self, group, path):
        before = group.head(KEYS[0])
        os.utime(path, ns=(1, 1))
        assert group.reopened().head(KEYS[0]) != before

    def test_what_is_replaced_is_used_on_and_said_once(self, group, path):
        view, raw = rows_of(group, 0, 1), path.read_bytes()
        shown, viewed = view.part(0).tobytes(), group.view(KEYS[0])
        (path.parent / "new").write_bytes(b"x" * len(raw))
        (path.parent / "new").replace(path)
        assert [backend.REPLACED in line for line in view.look([0, 1], lambda _: False)] == [True]
        assert view.part(0).tobytes() == shown == viewed[: len(shown)].tobytes()
        assert view.look([0, 1], lambda _: False) == []

    def test_what_is_removed_is_used_on_and_said_once(self, group, path):
        view = rows_of(group, 0)
        shown = view.part(0).tobytes()
        path.unlink()
        assert [backend.REPLACED in line for line in view.look([0], lambda _: False)] == [True]
        assert view.look([0], lambda _: False) == []
        assert view.part(0).tobytes() == shown

    def test_what_was_written_to_is_checked_once(self, group, path):
        view, asked = rows_of(group, 0), []
        os.utime(path, ns=(1, 1))
        lines = view.look([0], lambda index: asked.append(index) or True)
        assert [backend.WRITTEN in line for line in lines] == [True]
        assert 0 in asked
        assert view.look([0], lambda _: False) == []

    def test_what_is_overwritten_is_named(self, group, path):
        view = rows_of(group, 0)
        os.utime(path, ns=(1, 1))
        with pytest.raises(OverwrittenError) as raised:
            view.look([0], lambda _: False)
        assert raised.value.where.startswith(str(path))

    def test_what_is_truncated_is_never_read(self, group, path):
        view = rows_of(group, 0)
        os.truncate(path, 100)
        with pytest.raises(OverwrittenError) as raised:
            view.look([0], lambda _: pytest.fail("it was read"))
        assert raised.value.size == 100

    def test_an_object_of_another_size_is_not_opened(self, folder):
        (folder / KEYS[1]).write_bytes(b"short")
        with pytest.raises(WrongSizeError) as raised:
            rows_of(Folder(folder), 1)
        assert raised.value.size == 5


class TestWriting:
    """A folder is written to; an exported file is not."""

    def test_an_exported_file_has_no_way_to_be_written_to(self, folder):
        exported, own = opened("hdf5", folder), Folder(folder)
        for capability in (backend.Writer, backend.Deleter):
            assert isinstance(own, capability)
            assert not isinstance(exported, capability)

    @pytest.mark.parametrize("flush", [True, False])
    def test_what_is_put_is_got_and_replaced(self, flush, tmp_path):
        group = Folder(tmp_path / "new")
        group.put("a/b/c", b"one", memoryview(b" two"), flush=flush)
        assert group.get("a/b/c") == b"one two"
        shown = group.view("a/b/c")
        group.put("a/b/c", b"", flush=flush)
        assert group.get("a/b/c") == b""
        assert group.view("a/b/c").size == 0
        assert shown.tobytes() == b"one two"
        assert [entry.key for entry in group.list()] == ["a/b/c"]

    def test_an_object_that_cannot_be_finished_leaves_the_old_one(self, tmp_path, monkeypatch):
        group = Folder(tmp_path)
        group.put("a", b"old")

        def full(*_):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr("antigram.pipeline.storage.folder.write_in_parts", full)
        with pytest.raises(OSError, match="No space left") as raised:
            group.put("a", b"new")
        assert raised.value.filename == group.where("a")
        assert bytes_of(tmp_path) == {"a": b"old"}

    def test_what_is_deleted_is_gone_and_may_be_deleted_again(self, tmp_path):
        group = Folder(tmp_path)
        group.put("a/b", b"x")
        group.put("a/c", b"y")
        for _ in range(2):
            group.delete("a/b")
            assert [entry.key for entry in group.list()] == ["a/c"]

    def test_a_folder_has_no_room_for_an_object(self, tmp_path):
        group = Folder(tmp_path)
        group.put("a/b", b"x")
        with pytest.raises(InputError, match="is a folder"):
            group.put("a", b"y")
