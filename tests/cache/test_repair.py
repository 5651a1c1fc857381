"""Damage of a cache is reported by verify, refused by readers, and repaired by the same build."""

import shutil

import numpy as np
import pytest

from antigram.cache.grams import GramCache
from antigram.cache.layer import layers_of
from antigram.pipeline.errors import DamagedError, InputError
from antigram.studies.verify import verify_cache
from tests.support.caches import ARRAYS
from tests.support.campaigns import keep
from tests.support.files import bytes_of, flip

CHUNKS = 4  # chunks of 4, 4, 4 and 3 clips
ROWS = (4, 4, 4, 3)


def chunk_of(path, layer, array, index):
    """Return the file of a chunk; the other axes add folders below."""
    (file,) = [
        p
        for p in (path / f"layer{layer:02d}" / array / "c").rglob("*")
        if p.is_file()
        and p.relative_to(path / f"layer{layer:02d}" / array / "c").parts[0] == str(index)
    ]
    return file


def swap(file, other):
    raw = file.read_bytes()
    file.write_bytes(other.read_bytes())
    other.write_bytes(raw)


# Functions that damage a chunk file, given another chunk of its array and an older version of it.
DAMAGES = {
    "flip": lambda file, other, older: flip(file, file.stat().st_size // 2),
    "flip in the checksum": lambda file, other, older: flip(file, -1),
    "truncate": lambda file, other, older: file.write_bytes(file.read_bytes()[:-4]),
    "cut to 3 bytes": lambda file, other, older: file.write_bytes(file.read_bytes()[:3]),
    "append": lambda file, other, older: file.write_bytes(file.read_bytes() + b"\0"),
    "delete": lambda file, other, older: file.unlink(),
    "empty": lambda file, other, older: file.write_bytes(b""),
    "swap": lambda file, other, older: swap(file, other),
    "older version": lambda file, other, older: shutil.copyfile(older, file),
    "zeros": lambda file, other, older: file.write_bytes(bytes(file.stat().st_size)),
}
# A flipped bit in the checksum leaves the rows as they are, so a reader may return them.
IN_ROWS = [name for name in DAMAGES if name != "flip in the checksum"]
every_damage = pytest.mark.parametrize("damage", IN_ROWS)


@pytest.fixture
def damaged(copy, built):
    """Damage chunk 1 of an array of layer 5; a swap exchanges it with chunk 2."""

    def run(damage, codec, array):
        path = copy(codec)
        before = bytes_of(path)
        file, other = (chunk_of(path, 5, array, index) for index in (1, 2))
        DAMAGES[damage](file, other, chunk_of(built[codec, "older"], 5, array, 1))
        assert bytes_of(path) != before
        return path, before, {file, other} if damage == "swap" else {file}

    return run


CASES = [
    pytest.param(
        codec,
        array,
        damage,
        marks=() if array == "gram" or damage in ("flip", "swap") else pytest.mark.slow,
    )
    for codec, arrays in ARRAYS.items()
    for array in arrays
    for damage in DAMAGES
]


@pytest.mark.parametrize(("codec", "array", "damage"), CASES)
def test_a_damaged_chunk_is_found_and_its_clips_alone_are_made_again(
    codec, array, damage, damaged, make, store
):
    path, before, files = damaged(damage, codec, array)
    assert {p.path for p in verify_cache(path, [store.path])} == files
    made = make(codec=codec)
    assert bytes_of(path) == before
    assert not list(verify_cache(path, [store.path]))
    # Norms are written anew in any case, so that a damaged checksum behind them costs no clip.
    kept = damage == "flip in the checksum" and array != ARRAYS[codec][0]
    assert made.computed == (0 if kept else 4 * len(files))


@every_damage
@pytest.mark.parametrize("codec", ARRAYS)
def test_reading_a_damaged_chunk_is_refused_by_the_name_of_its_file(codec, damage, damaged, store):
    path, _, files = damaged(damage, codec, ARRAYS[codec][0])
    grams = GramCache(path, store)
    whole = [clip for clip in range(15) if clip // 4 not in (1, 2)]
    assert set(grams.read(np.array(whole))) == {1, 5}
    for file in files:
        index = int(file.relative_to(path).parts[3])
        with pytest.raises(DamagedError, match=rf"{file}: .*antigram verify"):
            grams.read(np.array([0, 4 * index]))


@every_damage
@pytest.mark.parametrize("array", ["norm", "row_norm", "energy"])
def test_a_damaged_norm_is_refused_when_the_cache_is_opened(array, damage, damaged, store):
    path, _, files = damaged(damage, "lowrank", array)
    with pytest.raises(DamagedError, match=rf"{min(files)}: .*antigram verify"):
        GramCache(path, store)
    assert set(GramCache(path, store, [1]).read(np.arange(15))) == {1}


@pytest.mark.parametrize("codec", ARRAYS)
def test_a_bit_in_the_checksum_behind_the_rows_makes_no_other_row(codec, damaged, built, store):
    clips = np.arange(15)
    want = GramCache(built[codec, "grams"], store).read(clips)[5]
    path, _, (file,) = damaged("flip in the checksum", codec, ARRAYS[codec][0])
    assert file in {p.path for p in verify_cache(path, [store.path])}
    try:
        got = GramCache(path, store).read(clips)[5]
    except DamagedError:  # correct as well; only another row would be wrong
        return
    np.testing.assert_array_equal(got.data, want.data)


@pytest.mark.parametrize("index", range(CHUNKS))
def test_as_many_clips_are_made_again_as_the_chunk_has(index, make):
    built = make()
    before = bytes_of(built.path)
    flip(chunk_of(built.path, 5, "gram", index))
    assert make().computed == ROWS[index]
    assert bytes_of(built.path) == before


def test_chunks_damaged_in_two_layers_cost_each_clip_once(copy, make):
    path = copy()
    before = bytes_of(path)
    for layer, index in ((1, 0), (5, 0), (5, 3)):
        flip(chunk_of(path, layer, "gram", index))
    assert make().computed == ROWS[0] + ROWS[3]
    assert bytes_of(path) == before


def test_a_damaged_layer_that_is_not_asked_for_stays_as_it_is(copy, make):
    path = copy()
    flip(chunk_of(path, 5, "gram", 1))
    before = bytes_of(path)
    assert make(layers=(1,)).computed == 0
    assert bytes_of(path) == before


@pytest.mark.parametrize("array", ["gram", "norm"])
def test_adding_a_layer_leaves_a_damaged_one_to_be_mended(array, make):
    path = make(layers=(5,)).path
    before = bytes_of(path / "layer05")
    flip(chunk_of(path, 5, array, 1))
    make(layers=(1,))
    assert layers_of(path) == [1, 5]
    make(layers=(5,))
    assert bytes_of(path / "layer05") == before


@pytest.mark.parametrize("name", ["zarr.json", "gram/zarr.json", "manifest/zarr.json"])
@pytest.mark.parametrize("damage", ["flip", "truncate", "delete", "empty"])
def test_damaged_metadata_of_a_layer_is_found_and_made_again(name, damage, copy, make, store):
    path = copy()
    before = bytes_of(path)
    file = path / "layer05" / name
    DAMAGES[damage](file, None, None)
    assert file in {p.path for p in verify_cache(path, [store.path])}
    with pytest.raises(DamagedError, match=str(file)):
        GramCache(path, store)
    make()
    assert bytes_of(path) == before
    assert not list(verify_cache(path, [store.path]))


@pytest.mark.parametrize("layers", [(1, 5), (5,)], ids=str)
def test_a_deleted_layer_is_missed_and_made_again(layers, make, store):
    path = make(layers=layers).path
    before = bytes_of(path)
    shutil.rmtree(path / "layer05")
    assert any(
        (p.path, p.problem) == (path / "layer05", "missing")
        for p in verify_cache(path, [store.path])
    )
    assert make(layers=layers).computed == 15
    assert bytes_of(path) == before
    assert not list(verify_cache(path, [store.path]))


@pytest.mark.parametrize("name", ["zarr.json", "manifest/zarr.json"])
@pytest.mark.parametrize("damage", ["flip", "truncate", "delete", "empty"])
def test_a_damaged_root_is_written_again_and_the_layers_are_kept(name, damage, copy, make, store):
    path = copy()
    before = bytes_of(path)
    DAMAGES[damage](path / name, None, None)
    assert list(verify_cache(path, [store.path]))
    with pytest.raises((DamagedError, InputError)):
        GramCache(path, store)
    assert make().computed == 0
    assert bytes_of(path) == before
    assert not list(verify_cache(path, [store.path]))


def test_a_root_without_its_manifest_folder_is_written_again(copy, make, store):
    path = copy()
    before = bytes_of(path)
    shutil.rmtree(path / "manifest")
    assert list(verify_cache(path, [store.path]))
    assert make().computed == 0
    assert bytes_of(path) == before


def test_a_layer_that_was_put_back_from_an_older_cache_is_found(copy, built, store):
    path = copy()
    shutil.rmtree(path / "layer05")
    shutil.copytree(built["packed", "older"] / "layer05", path / "layer05")
    (problem,) = verify_cache(path, [store.path])
    assert problem.path == path / "layer05"
    assert "another version" in problem.problem


@pytest.mark.slow
@pytest.mark.parametrize("codec", ARRAYS)
def test_each_of_100_random_damages_is_found(codec, copy, built, store, rng):
    path, older = copy(codec), built[codec, "older"]
    chunks = [
        (layer, array, index)
        for layer in (1, 5)
        for array in ARRAYS[codec]
        for index in range(CHUNKS)
    ]
    done = []
    while len(done) < 100:
        kind = list(DAMAGES)[rng.integers(len(DAMAGES))]
        layer, array, index = chunks[rng.integers(len(chunks))]
        file = chunk_of(path, layer, array, index)
        other = chunk_of(path, layer, array, (index + int(rng.integers(1, CHUNKS))) % CHUNKS)
        raw, beside = file.read_bytes(), other.read_bytes()
        if kind == "older version" and chunk_of(older, layer, array, index).read_bytes() == raw:
            continue  # a rank that loses nothing has energy 1 in any network
        if kind == "flip":
            flip(file, int(rng.integers(len(raw))), int(rng.integers(8)))
        else:
            DAMAGES[kind](file, other, chunk_of(older, layer, array, index))
        where = f"{kind} of {file.relative_to(path)}"
        found = {p.path for p in verify_cache(path, [store.path])}
        assert found == ({file, other} if kind == "swap" else {file}), where
        file.write_bytes(raw)
        other.write_bytes(beside)
        done.append((kind, array))
    keep(
        f"flips, cuts, deletions, swaps and older versions of chunks: cache, {codec}",
        kind="flips",
        test="tests/cache/test_repair.py",
        tried=len(done),
        found=len(done),
    )
    assert len(set(done)) > 20
    assert not list(verify_cache(path, [store.path]))
