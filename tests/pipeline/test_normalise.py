"""Second pass of `prepare`: it checks the raw blocks that it reads, and does not change them."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from antigram.pipeline.corpora.gsc import GSC
from antigram.pipeline.errors import InputError
from antigram.pipeline.features import rendering as render
from antigram.pipeline.features import row_audio
from antigram.pipeline.features.listing import list_rows
from antigram.pipeline.storage.chunks import ArraySpec, chunk_path
from tests.support import corpus_trees
from tests.support.files import bytes_of, flip
from tests.support.stores import ROW_BYTES, gsc_recipe, prepare_gsc


def at_the_beginning(act):
    """Return an `on_progress` that acts once, after rendering and before normalising."""

    def on_progress(stage, done, _total):
        if stage == "normalise" and done == 0:
            act()

    return on_progress


def damaged(block):
    flip(block, 70_002, 5)


def cut(block):
    block.write_bytes(block.read_bytes()[:-1])


def longer(block):
    block.write_bytes(block.read_bytes() + b"\0")


@pytest.mark.parametrize("damage", [damaged, cut, longer, Path.unlink])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_a_raw_block_that_is_not_as_it_was_written_is_rendered_again(
    damage, dtype, gsc_home, clean, tmp_path
):
    target = tmp_path / "gsc.zarr"
    raw = tmp_path / ".gsc.zarr.partial" / "raw"
    on_progress = at_the_beginning(lambda: damage(raw / "00000002.f32"))
    store = prepare_gsc(gsc_home, target, dtype=dtype, on_progress=on_progress).store
    if dtype == "float32":
        assert bytes_of(target) == bytes_of(clean.store.path)
    np.testing.assert_array_equal(
        store.features.read(), clean.store.features.read().astype(store.features.read().dtype)
    )


@pytest.mark.parametrize("before", [0, 2])
def test_a_recording_that_changes_between_the_two_passes_is_noticed_where_it_is_read_again(
    before, gsc_home, tmp_path
):
    home = Path(shutil.copytree(gsc_home, tmp_path / "gsc"))
    raw = tmp_path / ".gsc.zarr.partial" / "raw"

    def on_progress(stage, done, _total):
        if (stage, done) == ("normalise", before):
            (raw / "00000005.f32").unlink()
            corpus_trees.wav(home / "zero" / "0000ab03_nohash_1.wav", corpus_trees.sound(999))

    with pytest.raises(InputError, match="recordings changed while they were read"):
        prepare_gsc(home, tmp_path / "gsc.zarr", on_progress=on_progress)
    assert not (tmp_path / "gsc.zarr").exists()
    again = prepare_gsc(home, tmp_path / "gsc.zarr").store.path  # resumes from the present state
    assert bytes_of(again) == bytes_of(prepare_gsc(home, tmp_path / "b.zarr").store.path)


def test_a_task_may_be_run_twice(gsc_home, tmp_path):
    recipe = gsc_recipe()
    rows = list_rows(GSC, gsc_home, recipe, None).rows[:4]
    (tmp_path / "raw").mkdir()
    render.set_up(row_audio.Context(recipe, gsc_home, tmp_path / "raw", None))
    block, results, sources = render.render_block(0, rows)
    before = bytes_of(tmp_path / "raw")
    assert render.render_block(0, rows)[:2] == (block, results)
    assert [source.path for source in sources] == [row.path for row in rows]
    assert bytes_of(tmp_path / "raw") == before

    spec = ArraySpec("features", (4, *recipe.shape), "float32", 4)
    task = (tmp_path / "store", spec, 0, [(block, range(4))], 0.25, 2.0)
    once = render.normalise_chunk(*task)
    chunk = chunk_path(tmp_path / "store", spec, 0)
    content = chunk.read_bytes()
    assert render.normalise_chunk(*task) == once
    assert bytes_of(tmp_path / "raw") == before
    assert chunk.read_bytes() == content
    magnitudes = np.frombuffer(before["00000000.f32"], np.float32)
    np.testing.assert_array_equal(
        np.frombuffer(content[:-4], np.float32), (magnitudes - np.float32(0.25)) * np.float32(0.5)
    )


@pytest.mark.parametrize("rejected", [0, 1])
def test_raw_blocks_go_as_soon_as_no_chunk_needs_them(rejected, gsc_home, tmp_path):
    home = Path(shutil.copytree(gsc_home, tmp_path / "gsc"))
    if rejected:  # each chunk then takes rows of two blocks
        corpus_trees.wav(
            home / "one" / "0000ab00_nohash_0.wav", np.full(16_000, np.nan), subtype="FLOAT"
        )
    partial, seen = tmp_path / ".gsc.zarr.partial", []

    def on_progress(stage, done, total):
        if stage == "normalise":
            raw = len(list((partial / "raw").glob("*.f32")))
            seen.append((done, raw, total))

    prepare_gsc(home, tmp_path / "gsc.zarr", on_progress=on_progress, max_rejected=rejected)
    assert [done for done, _, _ in seen] == list(range(7))
    for done, raw, total in seen:
        # Tasks that run ahead: two of them with one worker; theirs come back in order.
        assert raw <= total - done + rejected
    assert seen[-1][1] == 0


@pytest.mark.parametrize(("rows", "fits"), [(24 + 12, True), (24 + 12 - 1, False)])
def test_the_room_that_is_wanted_is_that_of_raw_blocks_and_of_chunks_in_the_making(
    rows, fits, gsc_home, tmp_path, monkeypatch
):
    usage = shutil._ntuple_diskusage(10**9, 0, rows * ROW_BYTES)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    if fits:
        assert len(prepare_gsc(gsc_home, tmp_path / "gsc.zarr").store) == 24
    else:
        with pytest.raises(InputError, match="wanted while preparing"):
            prepare_gsc(gsc_home, tmp_path / "gsc.zarr")
