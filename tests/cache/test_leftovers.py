"""Leftovers of a build that is killed while it publishes, and notes with invalid content."""

import json
import shutil
from pathlib import Path

import pytest

import antigram.cache.layer_writer
from antigram.cache.build import build_cache
from antigram.cache.layer import layers_of
from antigram.cache.plan import plan_layers
from antigram.model.loss.sources import TapSpec
from antigram.pipeline.storage.chunks import crc32c
from antigram.studies.verify import verify_cache
from tests.support.files import bytes_of
from tests.support.nets import CPU, VGG16


class Killed(BaseException):
    """Stands for a SIGKILL."""


def dying(monkeypatch, where, name, when):
    """Make a function fail at its first call for which ``when`` is true."""
    real = getattr(where, name)

    def call(*arguments, **keywords):
        if when(*arguments):
            raise Killed
        return real(*arguments, **keywords)

    monkeypatch.setattr(where, name, call)


def test_a_build_killed_while_it_deletes_a_replaced_layer_leaves_an_intact_cache(
    build, monkeypatch
):
    want = bytes_of(build("want", layers=(1, 5), dtype="float32").path)
    path = build(layers=(1, 5)).path
    with monkeypatch.context() as patch:
        dying(
            patch, shutil, "rmtree", lambda folder, *_: "layer05" in folder.name and folder.is_dir()
        )
        with pytest.raises(Killed):
            build(layers=(1, 5), dtype="float32")
    assert build(layers=(1, 5), dtype="float32").computed == 0
    assert list(verify_cache(path, [])) == []
    assert bytes_of(path) == want
    assert sorted(p.name for p in path.parent.iterdir()) == ["grams.zarr", "want.zarr"]


def test_a_layer_that_a_cut_swap_had_put_aside_is_kept_when_another_is_added(build, monkeypatch):
    path = build(layers=(5,)).path
    want = bytes_of(path / "layer05")
    with monkeypatch.context() as patch:
        goal = path / "layer05"
        dying(patch, Path, "rename", lambda old, new: new == goal and old.name == "layer05")
        with pytest.raises(Killed):
            build(layers=(5,), dtype="float32")
    assert not goal.exists()
    build(layers=(1,))
    assert bytes_of(goal) == want
    assert list(verify_cache(path, [])) == []
    assert layers_of(path) == [1, 5]


def test_work_on_one_layer_is_kept_when_another_is_built(build, monkeypatch):
    calls = []
    with monkeypatch.context() as patch:
        dying(
            patch,
            antigram.cache.layer_writer,
            "write_chunk",
            lambda *_: calls.append(1) or len(calls) > 2,  # chunks
        )
        with pytest.raises(Killed):
            build(layers=(5,))
    assert build(layers=(1,)).computed == 15
    assert build(layers=(5,)).computed == 15 - 2 * 4
    assert bytes_of(build(layers=(1, 5)).path) == bytes_of(build("b", layers=(1, 5)).path)
    assert [p.name for p in (build(layers=(1,)).path.parent).glob(".*")] == []


@pytest.fixture
def lowrank(store, teacher, tmp_path):
    def run(name):
        spec = TapSpec(arch=VGG16, layers=(1,))
        plans = plan_layers(store, teacher, spec, codec="lowrank", dtype="float32", energy=0.9)
        path = tmp_path / "grams" / f"{name}.zarr"
        return build_cache(store, teacher, plans, path, made_from={}, batch_clips=4, device=CPU)

    return run


def line(entry):
    text = json.dumps(entry).encode()
    return b"%08x %s\n" % (crc32c(text), text)


def written(**entry):
    return {"vectors": entry}


ENTRIES = [
    {},
    {"chunk": 0},
    {"chunk": 0, "written": {}, "part": 1},
    {"chunk": 0, "written": {"vectors": 3}, "part": 1},
    {"chunk": "0", "written": None, "part": 1},
    {"chunk": 10**9, "written": written(crc32c=1, sha256="x"), "part": 1},
    {"chunk": 0, "written": written(), "part": 1},
    {"chunk": 0, "written": written(crc32c=-(10**20), sha256="x"), "part": 1},
    {"chunk": 0, "written": written(crc32c=1, sha256="x"), "part": "x"},
    {"chunk": 0, "written": written(crc32c=1, sha256="x")},  # as version 0.1.0 wrote it
]


def garbled(note):
    """Yield invalid contents of a note."""
    yield from (b"\xff", b"[]", b"[" * 9999)
    for key, value in (("rank", "two"), ("rank", 99), ("pilot", 3)):
        yield json.dumps({**note, key: value}).encode()


def test_notes_of_a_layer_that_cannot_be_understood_are_made_again(lowrank, monkeypatch):
    want = bytes_of(lowrank("want").path)
    target = lowrank("want").path.with_name("grams.zarr")
    partial = target.with_name(".grams.zarr.partial")
    calls = []
    with monkeypatch.context() as patch:
        dying(
            patch,
            antigram.cache.layer_writer,
            "write_chunk",
            lambda *_: calls.append(1) or len(calls) > 2,  # chunks
        )
        with pytest.raises(Killed):
            lowrank("grams")
    left = Path(shutil.copytree(partial, partial.with_name("left")))
    note = json.loads((left / "layer01.json").read_bytes())

    def resumed():
        shutil.rmtree(target, ignore_errors=True)
        built = lowrank("grams")
        assert bytes_of(target) == want
        return built.computed

    for content in (*garbled(note), None):
        shutil.rmtree(partial, ignore_errors=True)
        shutil.copytree(left, partial)
        (partial / "layer01.json").unlink()
        if content is None:
            (partial / "layer01.json" / "inner").mkdir(parents=True)
        else:
            (partial / "layer01.json").write_bytes(content)
        assert resumed() == 15
    shutil.copytree(left, partial)
    journal = partial / "layer01.jsonl"
    garbage = b"".join(map(line, ENTRIES))
    journal.write_bytes(garbage + journal.read_bytes() + garbage)
    assert resumed() == 15 - 2 * 4  # entries beside the garbage count
