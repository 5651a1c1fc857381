"""The two passes of `prepare`: what is kept in memory between them, and what is rendered again."""

import shutil
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from antigram.pipeline.audio import decoding
from antigram.pipeline.corpora.gsc import GSC
from antigram.pipeline.errors import InputError
from antigram.pipeline.execution import memory as memory_module
from antigram.pipeline.execution.memory import shared_memory
from antigram.pipeline.features import rendering as render
from antigram.pipeline.features import row_audio
from antigram.pipeline.features.listing import list_rows
from antigram.pipeline.storage.chunks import ArraySpec, chunk_path
from tests.support import corpus_trees
from tests.support.files import bytes_of
from tests.support.stores import ROW_BYTES, Stopped, gsc_recipe, prepare_gsc, stop_at

BLOCK_BYTES = 4 * ROW_BYTES
NOTHING, THREE_BLOCKS = 0, 3 * BLOCK_BYTES


def recordings_read(monkeypatch):
    """Return a list that gets a path for each recording that a worker opens from now on."""
    seen = []

    def read(path, **given):
        seen.append(path)
        return decoding.read(path, **given)

    monkeypatch.setattr(row_audio, "read", read)
    return seen


class InThisProcess:
    """Workers without processes."""

    def __init__(self, _count, set_up, shared, _preload):
        set_up(shared)

    @staticmethod
    def warm_up(_preload):
        pass

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def alone(self, function, *task):
        return function(*task)

    def run(self, function, tasks, _on_crash=None):
        for task in tasks:
            yield task, function(*task)


@pytest.fixture
def in_this_process(monkeypatch):
    monkeypatch.setattr("antigram.pipeline.features.preparation.Workers", InThisProcess)


@pytest.mark.parametrize("memory", [NOTHING, THREE_BLOCKS, THREE_BLOCKS - 1, 24 * ROW_BYTES, None])
def test_the_store_does_not_depend_on_how_much_is_kept_in_memory(
    memory, noisy, gsc_home, noise_home, tmp_path
):
    target = tmp_path / "gsc-high.zarr"
    prepare_gsc(gsc_home, target, noise_home=noise_home, memory=memory, workers=2)
    assert bytes_of(target) == bytes_of(noisy.store.path)


@pytest.mark.parametrize(
    ("memory", "read"),
    [
        (None, 24),
        (24 * ROW_BYTES, 24),
        (THREE_BLOCKS, 24 + 12),
        (THREE_BLOCKS - 1, 24 + 16),
        (NOTHING, 24 + 24),
    ],
)
def test_only_rows_without_room_are_rendered_twice(
    memory, read, in_this_process, monkeypatch, gsc_home, clean, tmp_path
):
    seen = recordings_read(monkeypatch)
    prepare_gsc(gsc_home, tmp_path / "gsc.zarr", memory=memory)
    assert len(seen) == read
    assert bytes_of(tmp_path / "gsc.zarr") == bytes_of(clean.store.path)


@pytest.mark.parametrize("rejected", [0, 1])
def test_nothing_is_written_but_the_store_and_journals(rejected, gsc_home, noise_home, tmp_path):
    home = Path(shutil.copytree(gsc_home, tmp_path / "gsc"))
    if rejected:  # each chunk then takes rows of two blocks
        corpus_trees.wav(
            home / "one" / "0000ab00_nohash_0.wav", np.full(16_000, np.nan), subtype="FLOAT"
        )
    partial, seen = tmp_path / ".gsc.zarr.partial", set()

    def on_progress(*_):
        seen.update(path.relative_to(partial).as_posix() for path in partial.rglob("*.*"))

    prepare_gsc(
        home,
        tmp_path / "gsc.zarr",
        noise_home=noise_home,
        max_rejected=rejected,
        on_progress=on_progress,
    )
    unfinished = {name for name in seen if name.startswith("store/features/c/")}
    assert seen - unfinished <= {"job.json", "sums.jsonl", "chunks.jsonl"}


@pytest.mark.parametrize("memory", [NOTHING, THREE_BLOCKS, None])
@pytest.mark.parametrize(("stage", "done"), [("features", 12), ("normalise", 2)])
def test_what_was_only_in_memory_is_rendered_again_after_a_stop_but_its_sums_are_not(
    stage, done, memory, in_this_process, monkeypatch, gsc_home, clean, tmp_path
):
    target = tmp_path / "gsc.zarr"
    with pytest.raises(Stopped):
        prepare_gsc(gsc_home, target, on_progress=stop_at(stage, done), memory=memory)
    seen = recordings_read(monkeypatch)
    again = prepare_gsc(gsc_home, target)  # with room for all
    if stage == "features":
        assert again.computed == 12  # four rows a block: three of six were noted
        assert len(seen) == 12 + 12
    else:
        assert again.computed == 0
        assert len(seen) == 24 - 2 * 4
    assert bytes_of(target) == bytes_of(clean.store.path)


@pytest.mark.parametrize("rejected", [0, 1])
@pytest.mark.parametrize("before", [0, 2])
def test_a_recording_that_changes_between_the_two_passes_is_noticed_where_it_is_read_again(
    before, rejected, gsc_home, tmp_path
):
    home = Path(shutil.copytree(gsc_home, tmp_path / "gsc"))
    if rejected:
        corpus_trees.wav(
            home / "one" / "0000ab00_nohash_0.wav", np.full(16_000, np.nan), subtype="FLOAT"
        )

    def on_progress(stage, done, _total):
        if (stage, done) == ("normalise", before):
            corpus_trees.wav(home / "zero" / "0000ab03_nohash_1.wav", corpus_trees.sound(999))

    given = {"max_rejected": rejected, "memory": NOTHING}
    with pytest.raises(InputError, match="recordings changed while they were read"):
        prepare_gsc(home, tmp_path / "gsc.zarr", on_progress=on_progress, **given)
    assert not (tmp_path / "gsc.zarr").exists()
    again = prepare_gsc(home, tmp_path / "gsc.zarr", **given)  # resumes from the present state
    assert again.computed == 0  # the block that changed was noted anew
    b = prepare_gsc(home, tmp_path / "b.zarr", **given).store.path
    assert bytes_of(again.store.path) == bytes_of(b)


def test_a_recording_that_changes_after_its_rows_were_kept_leaves_the_store_as_noted(
    clean, gsc_home, tmp_path
):
    home = Path(shutil.copytree(gsc_home, tmp_path / "gsc"))

    def on_progress(stage, done, _total):
        if (stage, done) == ("normalise", 0):
            corpus_trees.wav(home / "zero" / "0000ab03_nohash_1.wav", corpus_trees.sound(999))

    target = tmp_path / "gsc.zarr"
    prepare_gsc(home, target, on_progress=on_progress)
    assert bytes_of(target) == bytes_of(clean.store.path)
    assert prepare_gsc(home, target).computed == 24  # its edit is seen by the record of sources


def test_a_task_may_be_run_twice(gsc_home, tmp_path):
    recipe = gsc_recipe()
    rows = list_rows(GSC, gsc_home, recipe, None).rows[:12]
    with shared_memory(2 * 12 * ROW_BYTES) as memory:
        assert memory is not None
        render.set_up(row_audio.Context(recipe, gsc_home, None, memory=memory))
        first = render.render_block(0, rows, (), 100)
        assert render.render_block(0, rows, (), 100)[::2] == first[::2]
        assert [source.path for source in first.sources] == [row.path for row in rows]
        magnitudes = np.empty((12, *recipe.shape), np.float32)
        memory.read(100, magnitudes)

        spec = ArraySpec("features", (5, *recipe.shape), "float32", 6)
        taken = [0, 1, 2, 9, 11]  # of two groups that are transformed at once
        content = set()
        for kept in (100, render.Again(rows, first.results)):
            task = (tmp_path, spec, 0, [render.Piece(0, taken, kept)], 0.25, 2.0)
            once = render.write_features(*task)
            assert render.write_features(*task) == once
            content.add(chunk_path(tmp_path, spec, 0).read_bytes())
    [raw] = content
    values = np.frombuffer(raw[:-4], np.float32).reshape(6, *recipe.shape)
    np.testing.assert_array_equal(
        values[:5], (magnitudes[taken] - np.float32(0.25)) * np.float32(0.5)
    )
    assert np.isnan(values[5]).all()


def test_a_block_that_memory_refuses_counts_as_not_kept(gsc_home, tmp_path):
    recipe = gsc_recipe()
    rows = list_rows(GSC, gsc_home, recipe, None).rows[:4]
    with shared_memory(4 * ROW_BYTES) as memory:
        pass  # it is gone: writing fails, as it does at a limit of the process
    render.set_up(row_audio.Context(recipe, gsc_home, None, memory=memory))
    assert not render.render_block(0, rows, (), 0).kept


@pytest.mark.parametrize("memory", [0, THREE_BLOCKS, 24 * ROW_BYTES, 1 << 30])
def test_no_more_memory_is_taken_than_is_allowed(
    memory, gsc_home, noise_home, tmp_path, monkeypatch
):
    files, taken = [], []
    real = memory_module.file_in_memory

    @contextmanager
    def noted(path):
        with real(path) as file:
            files.append(file)
            yield file

    monkeypatch.setattr(memory_module, "file_in_memory", noted)
    monkeypatch.setattr(row_audio, "file_in_memory", noted)

    def on_progress(stage, done, _total):
        if (stage, done) == ("normalise", 0):
            taken.append(sum(file.stat().st_size for file in files))

    target = tmp_path / "gsc.zarr"
    prepare_gsc(gsc_home, target, noise_home=noise_home, memory=memory, on_progress=on_progress)
    assert taken[0] <= memory
    assert bool(taken[0]) == bool(memory)
    assert not any(file.exists() for file in files)


@pytest.mark.parametrize(("free", "fits"), [(24, True), (23, False)])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_the_room_that_is_wanted_is_that_of_the_features(
    dtype, free, fits, gsc_home, tmp_path, monkeypatch
):
    row = ROW_BYTES * np.dtype(dtype).itemsize // 4
    usage = shutil._ntuple_diskusage(10**9, 0, free * row)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    if fits:
        assert len(prepare_gsc(gsc_home, tmp_path / "gsc.zarr", dtype=dtype).store) == 24
    else:
        with pytest.raises(InputError, match="wanted while preparing"):
            prepare_gsc(gsc_home, tmp_path / "gsc.zarr", dtype=dtype)
