"""Finished folders are published atomically; leftovers of a killed process are repaired."""

import shutil
from pathlib import Path

import pytest

from antigram.pipeline.storage.publish import (
    Leftover,
    discard,
    leftovers_of,
    parse,
    publish,
    recover,
    work_folder,
)
from tests.support.files import bytes_of
from tests.support.stores import Stopped


@pytest.fixture
def new(clean, tmp_path):
    """A finished store, to be published."""
    return Path(shutil.copytree(clean.store.path, tmp_path / "work" / "store"))


def test_a_folder_takes_the_place_of_another_whose_readers_keep_it(new, tmp_path):
    goal = tmp_path / "features" / "goal.zarr"
    goal.mkdir(parents=True)
    (goal / "file").write_text("old")
    want = bytes_of(new)
    with (goal / "file").open() as reader:
        publish(new, goal)
        assert reader.read() == "old"
    assert bytes_of(goal) == want
    assert [p.name for p in goal.parent.iterdir()] == ["goal.zarr"]


def test_only_what_the_manifest_lists_is_published(new, tmp_path):
    want = bytes_of(new)
    for name in ("zarr.json.7.partial", "features/c/0/0/0.7.partial", "features/c/99/0/0", "x"):
        (new / name).parent.mkdir(parents=True, exist_ok=True)
        (new / name).write_bytes(b"of a writer that was killed")
    publish(new, tmp_path / "goal.zarr")
    assert bytes_of(tmp_path / "goal.zarr") == want


@pytest.mark.parametrize("kind", ["old", "partial", "import"])
def test_what_is_being_deleted_is_never_taken_for_complete(kind, clean, tmp_path, monkeypatch):
    goal = tmp_path / "gsc.zarr"
    left = Path(shutil.copytree(clean.store.path, tmp_path / f".gsc.zarr.{kind}"))

    def half(path, *_, **__):
        (path / "zarr.json").unlink()
        raise Stopped

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", half)
        with pytest.raises(Stopped):
            discard(left)
    recover(goal)
    assert list(tmp_path.iterdir()) == []


def test_leftovers_of_version_0_1_0_in_a_group_are_put_right(tmp_path):
    cache = tmp_path / "grams" / "a.zarr"
    (cache / "layer01").mkdir(parents=True)
    for layer in (".layer01.old", ".layer05.old"):
        (cache / layer).mkdir()
        (cache / layer / "x").write_text(layer)
    (cache / "zarr.json.123.partial").write_text("")
    assert {left.kind for left in leftovers_of(cache)} == {"old", "file"}
    recover(cache)
    assert sorted(bytes_of(cache)) == ["layer05/x"]  # nothing has replaced it
    assert sorted(p.name for p in cache.iterdir()) == ["layer01", "layer05"]


@pytest.mark.parametrize("name", ["gsc.zarr", "a.partial.zarr", "[x].zarr", "run-1", "x.old"])
@pytest.mark.parametrize("kind", ["partial", "import", "old", "trash", "lock"])
def test_names_tell_what_a_leftover_belongs_to(name, kind, tmp_path):
    goal, path = tmp_path / name, tmp_path / f".{name}.{kind}"
    assert parse(path) == Leftover(path, goal, kind, goal)
    assert parse(goal) is None
    assert work_folder(goal) == tmp_path / f".{name}.partial"
    layer = tmp_path / f".{name}.layer07.old"
    if name.endswith(".zarr"):
        assert parse(layer) == Leftover(layer, goal, "old", goal / "layer07")
