"""Recordings that are edited after or during preparation are noticed, even with the same size."""

import json
import os
import shutil
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from antigram.pipeline.corpora import CORPORA
from antigram.pipeline.features.naming import recipe_for
from antigram.pipeline.features.preparation import prepare
from antigram.pipeline.features.source_record import path_of, read_home, read_sources
from tests.support import corpus_trees
from tests.support.files import bytes_of, flip, names_in
from tests.support.stores import Stopped, prepare_gsc, stop_at

ONE, TWO = "one/0000ab00_nohash_0.wav", "two/0000ab03_nohash_1.wav"
AN_HOUR_NS = 3_600_000_000_000


@pytest.fixture
def home(gsc_home, tmp_path) -> Path:
    """A corpus whose files were last changed an hour ago."""
    home = Path(shutil.copytree(gsc_home, tmp_path / "gsc"))
    for path in home.rglob("*.wav"):
        age(path)
    return home


def age(path: Path) -> None:
    then = time.time_ns() - AN_HOUR_NS
    os.utime(path, ns=(then, then))


def edit(path: Path, seed: int = 999) -> None:
    """Write other samples to a file, without changing its size."""
    size = path.stat().st_size
    corpus_trees.wav(path, corpus_trees.sound(seed, (size - 44) // 2))
    assert path.stat().st_size == size


def edit_and_hide(path: Path) -> None:
    """Edit a file without changing its size and time."""
    status = path.stat()
    edit(path)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


@pytest.fixture(scope="module")
def edited(gsc_home, tmp_path_factory) -> Callable[[str], dict[str, bytes]]:
    """Return the bytes of the store of the corpus with one edited recording."""
    folder = tmp_path_factory.mktemp("edited")

    @cache
    def of(name: str) -> dict[str, bytes]:
        home = Path(shutil.copytree(gsc_home, folder / name.replace("/", "-")))
        edit(home / name)
        return bytes_of(prepare_gsc(home, home / "x.zarr").store.path)

    return of


def test_a_recording_that_was_edited_at_the_same_size_makes_the_store_again(home, edited, tmp_path):
    target = tmp_path / "a.zarr"
    before = bytes_of(prepare_gsc(home, target).store.path)
    edit(home / TWO)
    done = prepare_gsc(home, target)
    assert not done.left_alone
    assert bytes_of(target) == edited(TWO) != before
    assert prepare_gsc(home, target).left_alone


def test_recordings_that_were_only_touched_leave_the_store_alone_and_are_read_once(home, tmp_path):
    target = tmp_path / "a.zarr"
    before = bytes_of(prepare_gsc(home, target).store.path)
    for name in (ONE, TWO):
        os.utime(home / name, ns=(1, 1))
    shutil.copy(home / ONE, home / "copy")  # replaced by a copy: another inode, the same content
    (home / "copy").replace(home / ONE)
    age(home / ONE)
    for read in (2, 0):
        again = prepare_gsc(home, target)
        assert again.left_alone
        assert (again.sources.known, again.sources.read, again.sources.changed) == (True, read, [])
    assert bytes_of(target) == before


def test_a_recording_that_had_just_been_written_is_read_again(home, edited, tmp_path):
    # File systems keep times in steps: an edit in the same step shows the same time.
    corpus_trees.wav(home / ONE, corpus_trees.sound(5))
    target = tmp_path / "a.zarr"
    prepare_gsc(home, target)
    edit_and_hide(home / ONE)
    prepare_gsc(home, target)
    assert bytes_of(target) == edited(ONE)


def test_check_sources_finds_an_edit_that_kept_size_and_time(shell, home):
    wanted = ("prepare", "gsc", "--source", home, "--name", "x")
    store = Path("workspace/features/x.zarr")
    shell.json(*wanted)
    before = bytes_of(store)
    edit_and_hide(home / TWO)
    assert shell.json(*wanted)["sources"] == {
        "known": True, "files": 24, "read": 0, "changed": []
    }  # fmt: skip
    code, _, err = shell(*wanted, "--check-sources")
    assert code == 0
    assert f"x: 1 recordings were edited since it was prepared ({TWO}): it is rebuilt" in err
    assert bytes_of(store) != before
    assert shell.json(*wanted, "--check-sources")["sources"]["read"] == 24


def test_a_store_without_a_record_is_left_alone_and_check_sources_cannot_know(
    shell,
    home,
):
    wanted = ("prepare", "gsc", "--source", home, "--name", "x")
    store = Path("workspace/features/x.zarr")
    shell.json(*wanted)
    path_of(store).unlink()
    edit(home / TWO)
    for option in ([], ["--check-sources"]):
        before = bytes_of(store)
        code, _, err = shell(*wanted, *option)
        assert code == 0
        assert ("cannot be known" in err) == bool(option)
        assert bytes_of(store) == before
        assert not path_of(store).exists()  # the recordings that were read are not known
    shutil.rmtree(store)
    shell.json(*wanted)
    assert path_of(store).exists()


def test_the_record_is_no_part_of_the_store(shell, home):
    shell.json("prepare", "gsc", "--source", home, "--name", "x")
    store = Path("workspace/features/x.zarr")
    assert sorted(p.name for p in store.parent.iterdir()) == [".x.zarr.sources", "x.zarr"]
    assert shell.json("verify")["ok"]
    assert shell.json("clean")["removed"] == []
    shell.json("export", "x", "--to", "x.h5")
    shell.json("import", "x.h5", "--name", "y")
    assert shell.json("verify", "y")["ok"]
    assert bytes_of(store) == bytes_of(Path("workspace/features/y.zarr"))
    # The record of a store that was deleted is a leftover.
    shutil.rmtree(store)
    assert [Path(r["path"]).name for r in shell.json("clean")["removed"]] == [".x.zarr.sources"]
    assert names_in(store.parent) == ["y.zarr"]


def test_the_record_holds_what_the_recordings_were(home, tmp_path):
    store = prepare_gsc(home, tmp_path / "a.zarr").store
    noted = read_sources(path_of(store.path), store.fingerprint)
    assert [source.path for source in noted] == sorted(f"{name}.wav" for name in store.clip_ids)
    for source in noted:
        path = home / source.path
        assert (source.size, source.mtime_ns) == (path.stat().st_size, path.stat().st_mtime_ns)
        assert source.crc32c == crc32c_bit_by_bit(path.read_bytes())
        assert not source.fresh
    other = prepare_gsc(home, tmp_path / "b.zarr", seed=1).store
    assert read_sources(path_of(store.path), other.fingerprint) is None


def test_the_record_knows_where_the_recordings_are(home, tmp_path):
    store = prepare_gsc(home, tmp_path / "a.zarr").store
    record = path_of(store.path)
    assert read_home(record, store.fingerprint) == home
    assert read_home(record, "another") is None
    moved = home.rename(tmp_path / os.fsdecode(b"moved \xff"))  # a name that is not UTF-8
    assert prepare_gsc(moved, store.path).left_alone
    assert read_home(record, store.fingerprint) == moved
    noted = read_sources(record, store.fingerprint) or []
    assert len(noted) == 24
    # A record of an earlier version does not name the folder.
    raw = record.read_bytes()[:-4]
    line, _, body = raw.partition(b"\n")
    about = json.loads(line.decode(errors="surrogateescape"))
    del about["home"]
    raw = json.dumps(about).encode() + b"\n" + body
    record.write_bytes(raw + crc32c_bit_by_bit(raw).to_bytes(4, "little"))
    assert read_home(record, store.fingerprint) is None
    assert read_sources(record, store.fingerprint) == noted


def crc32c_bit_by_bit(data: bytes) -> int:
    table = []
    for first in range(256):
        value = first
        for _ in range(8):
            value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
        table.append(value)
    crc = 0xFFFFFFFF
    for byte in data:
        crc = table[(crc ^ byte) & 0xFF] ^ crc >> 8
    return crc ^ 0xFFFFFFFF


def test_a_damaged_record_is_never_used(home, tmp_path, rng):
    store = prepare_gsc(home, tmp_path / "a.zarr").store
    record = path_of(store.path)
    whole, before = record.read_bytes(), bytes_of(store.path)
    edit_and_hide(home / TWO)
    damages = [whole[:n] for n in (0, 3, 80, len(whole) - 1)] + [whole + b"\0", b"\xff" * 200]
    for place in rng.integers(0, len(whole) * 8, 20).tolist():
        record.write_bytes(whole)
        flip(record, place // 8, place % 8)
        damages.append(record.read_bytes())
    for damage in damages:
        record.write_bytes(damage)
        said = []
        done = prepare_gsc(home, store.path, on_message=said.append)
        assert done.left_alone
        assert not done.sources.known
        assert "not as it was written" in said[-1]
    assert bytes_of(store.path) == before


@pytest.mark.parametrize(
    ("stage", "at_least", "change"),
    [("features", 12, edit), ("normalise", 0, edit), ("normalise", 4, edit),
     ("features", 12, age), ("normalise", 4, age), ("features", 24, edit_and_hide)],
)  # fmt: skip
def test_an_edit_between_an_interrupt_and_the_next_run_is_not_mixed_with_what_was_rendered(
    stage, at_least, change, home, clean, edited, tmp_path
):
    target = tmp_path / "a.zarr"
    with pytest.raises(Stopped):
        prepare_gsc(home, target, on_progress=stop_at(stage, at_least))
    change(home / ONE)
    resumed = prepare_gsc(home, target, check_all=change is edit_and_hide)
    assert bytes_of(target) == (bytes_of(clean.store.path) if change is age else edited(ONE))
    if change is age:  # the same content: nothing is rendered again
        assert resumed.computed <= 24 - at_least


def test_a_recording_of_a_test_clip_that_is_edited_leaves_no_old_chunk(
    clean, home, edited, tmp_path
):
    """Mean and deviation, which identify chunks, do not depend on recordings of the test split."""
    clip_ids, target = clean.store.clip_ids, tmp_path / "a.zarr"
    row = int(clean.store.rows("test")[0])
    with pytest.raises(Stopped):
        prepare_gsc(home, target, on_progress=stop_at("normalise", 6))
    edit(home / f"{clip_ids[row]}.wav")
    store = prepare_gsc(home, target).store
    assert store.mean == clean.store.mean
    assert bytes_of(target) == edited(f"{clip_ids[row]}.wav")
    differs = (store.features.read() != clean.store.features.read()).any(axis=(1, 2))
    assert np.flatnonzero(differs).tolist() == [row]


def prepare_folder(home: Path, target: Path, **more):
    corpus, recipe = recipe_for(CORPORA["folder"], {})
    return prepare(corpus, home, recipe, target, **more)


@pytest.fixture
def long_ones(tmp_path, monkeypatch) -> Path:
    """A corpus of two recordings of 10 segments each, which span several blocks."""
    from antigram.pipeline.storage import chunks

    monkeypatch.setattr(chunks, "_TARGET_BYTES", 4 * 126 * 129 * 4)
    for seed, name in enumerate(("a/x.wav", "b/y.wav")):
        corpus_trees.wav(tmp_path / "long" / name, corpus_trees.sound(seed, 160_000))
        age(tmp_path / "long" / name)
    return tmp_path / "long"


def test_a_long_recording_that_is_edited_between_two_of_its_blocks_is_refused(long_ones, tmp_path):
    target, done_at = tmp_path / "a.zarr", []

    def on_progress(stage, done, _total):
        if stage == "features" and done >= 4 and not done_at:
            done_at.append(done)
            edit(long_ones / "a" / "x.wav")
            edit(long_ones / "b" / "y.wav")

    with pytest.raises(ValueError, match=r"recordings changed while they were read \((a/x|b/y)"):
        # At most two tasks wait for each worker, so some of the last blocks were not begun.
        prepare_folder(long_ones, target, on_progress=on_progress)
    assert not target.exists()
    prepare_folder(long_ones, target)
    assert bytes_of(target) == bytes_of(prepare_folder(long_ones, tmp_path / "b.zarr").store.path)


def test_a_long_recording_has_one_checksum_whatever_the_number_of_blocks(long_ones, tmp_path):
    store = prepare_folder(long_ones, tmp_path / "a.zarr", workers=2).store
    noted = read_sources(path_of(store.path), store.fingerprint)
    assert [source.path for source in noted] == ["a/x.wav", "b/y.wav"]
    for source in noted:
        assert source.crc32c == crc32c_bit_by_bit((long_ones / source.path).read_bytes())
    edit(long_ones / "b" / "y.wav")
    assert prepare_folder(long_ones, store.path).computed == 20


def test_clean_speech_of_mixtures_that_was_edited_makes_the_store_again(tmp_path):
    home = tmp_path / "ms-snsd"
    for n in range(4):
        corpus_trees.wav(home / "clean_train" / f"clnsp{n}.wav", corpus_trees.sound(n, 80_000))
        corpus_trees.wav(
            home / "noise_train" / f"Babble_{n}.wav", corpus_trees.sound(20 + n, 48_000)
        )
        corpus_trees.wav(
            home / "noise_train" / f"Typing_{n}.wav", corpus_trees.sound(40 + n, 48_000)
        )
    from antigram.pipeline.audio.noise import NoiseBank, noise_files

    noise = noise_files([home])[1]
    corpus, recipe = recipe_for(
        CORPORA["ms-snsd"], {"hours": "0.01", "noise_files": NoiseBank.digest_of(noise)}
    )
    clean, target = home / "clean_train", tmp_path / "a.zarr"
    for path in clean.iterdir():
        age(path)
    store = prepare(corpus, clean, recipe, target, noise=noise).store
    before = bytes_of(target)
    assert prepare(corpus, clean, recipe, target, noise=noise).sources.read == 0
    edit(clean / store.sources[-1].rpartition("#")[0])
    assert not prepare(corpus, clean, recipe, target, noise=noise).left_alone
    fresh = prepare(corpus, clean, recipe, tmp_path / "b.zarr", noise=noise).store.path
    assert bytes_of(target) == bytes_of(fresh) != before


def test_killed_before_the_record_is_in_its_place_the_next_run_puts_it_there(
    home, tmp_path, monkeypatch
):
    from antigram.pipeline.features import preparation as module

    def fail(*_):
        raise Stopped

    target = tmp_path / "a.zarr"
    with monkeypatch.context() as patch:
        patch.setattr(module, "adopt_sources", fail)
        with pytest.raises(Stopped):
            prepare_gsc(home, target)
    assert target.exists()
    assert not path_of(target).exists()
    again = prepare_gsc(home, target)
    assert again.left_alone
    assert again.sources.known
    assert path_of(target).exists()
    assert names_in(tmp_path) == ["a.zarr", "gsc"]


def test_killed_before_it_is_published_the_store_that_is_made_again_is_still_made(
    home, edited, tmp_path, monkeypatch
):
    from antigram.pipeline.features import preparation as module

    def fail(*_):
        raise Stopped

    target = tmp_path / "a.zarr"
    prepare_gsc(home, target)
    edit(home / TWO)
    with monkeypatch.context() as patch:
        patch.setattr(module, "publish", fail)
        with pytest.raises(Stopped):
            prepare_gsc(home, target)
    assert prepare_gsc(home, target).computed == 0
    assert bytes_of(target) == edited(TWO)


def test_a_recording_that_changes_after_it_was_listed_is_told_of_and_read_anew(home, tmp_path):
    def on_progress(stage, done, total):
        if stage == "headers" and done == total:
            corpus_trees.wav(home / ONE, corpus_trees.sound(7, 15_000))

    target, said = tmp_path / "a.zarr", []
    with pytest.raises(ValueError, match="1 unusable"):  # it has become shorter
        prepare_gsc(home, target, on_progress=on_progress)
    corpus_trees.wav(home / ONE, corpus_trees.sound(7, 12_000))

    def grow(stage, done, total):
        if stage == "headers" and done == total:
            corpus_trees.wav(home / ONE, corpus_trees.sound(7, 16_000))

    prepare_gsc(home, target, on_progress=grow, on_message=said.append)
    assert f"1 recordings changed after they were listed ({ONE})" in said[-1]
    prepare_gsc(home, target)
    assert bytes_of(target) == bytes_of(prepare_gsc(home, tmp_path / "b.zarr").store.path)
