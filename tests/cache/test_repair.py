"""Damage of a cache: found by verify, refused by a reader, mended by the same build."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import zarr

import antigram.cache.plan
from antigram.cache.build import build_cache
from antigram.cache.grams import GramCache
from antigram.cache.layer import CacheLayer, layer_fingerprint, layers_of
from antigram.cache.plan import plan_layers
from antigram.cache.recompute import recompute
from antigram.model.loss.sources import TapSpec
from antigram.pipeline.errors import DamagedError, InputError
from antigram.pipeline.storage.chunks import encode, write_chunk
from antigram.pipeline.storage.manifest import create_group, write_manifest
from antigram.pipeline.storage.mapped import MappedArray
from antigram.studies.verify import verify_cache
from tests.cache.conftest import ARCH, content_of
from tests.model.tiny import CPU, flip
from tests.reliability.record import keep

CHUNKS = 4  # of 15 clips: 4, 4, 4 and 3
ROWS = (4, 4, 4, 3)
ARRAYS = {
    "packed": ("gram", "norm", "row_norm"),
    "factor": ("factor", "norm", "row_norm"),
    "lowrank": ("vectors", "norm", "row_norm", "energy"),
}


def build_at(path, store, net, *, codec="packed", dtype="float16", layers=(1, 5), **spec):
    given = TapSpec(arch=ARCH, layers=layers, **spec)
    # A rank that is asked for: chunks of two nets are then of one size.
    rank = 2 if codec == "lowrank" else None
    return build_cache(
        store,
        net,
        plan_layers(store, net, given, codec=codec, dtype=dtype, rank=rank),
        path,
        made_from={"store": store.name, "checkpoint": "frozen"},
        batch_clips=4,
        device=CPU,
    )


@pytest.fixture
def make(store, teacher, tmp_path):
    """Build a cache of layers 1 and 5 in a codec, or mend the one that is there."""

    def run(name="grams", *, net=teacher, **asked):
        return build_at(tmp_path / "grams" / f"{name}.zarr", store, net, **asked)

    return run


@pytest.fixture(scope="module")
def built(store, teacher, other_frozen, tmp_path_factory):
    """(codec, which) -> a cache of the teacher or an ``older`` one of another: made once."""
    folder, nets = tmp_path_factory.mktemp("repair"), {"grams": teacher, "older": other_frozen}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(antigram.cache.plan, "_ROWS_PER_CHUNK", 4)
        return {
            (codec, which): build_at(folder / f"{codec} {which}.zarr", store, net, codec=codec).path
            for codec in ARRAYS
            for which, net in nets.items()
        }


@pytest.fixture
def copy(built, tmp_path):
    def run(codec="packed"):
        return shutil.copytree(built[codec, "grams"], tmp_path / "grams" / "grams.zarr")

    return run


def chunk_of(path, layer, array, index):
    """File of a chunk; the axes of its rows are the folders below."""
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


# kind -> what it does to a chunk file, given another chunk of its array and an older version of it
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
# A bit in the four bytes behind the rows leaves these as they are: a reader may well give them.
IN_ROWS = [name for name in DAMAGES if name != "flip in the checksum"]
every_damage = pytest.mark.parametrize("damage", IN_ROWS)


@pytest.fixture
def damaged(copy, built):
    """Damage chunk 1 of an array of layer 5; chunk 2 is the other where two are swapped."""

    def run(damage, codec, array):
        path = copy(codec)
        before = content_of(path)
        file, other = (chunk_of(path, 5, array, index) for index in (1, 2))
        DAMAGES[damage](file, other, chunk_of(built[codec, "older"], 5, array, 1))
        assert content_of(path) != before
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
    assert content_of(path) == before
    assert not list(verify_cache(path, [store.path]))
    assert made.computed == 4 * len(files)


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
    except DamagedError:  # as good: what must not happen is another row
        return
    np.testing.assert_array_equal(got.data, want.data)


@pytest.mark.parametrize("index", range(CHUNKS))
def test_as_many_clips_are_made_again_as_the_chunk_has(index, make):
    built = make()
    before = content_of(built.path)
    flip(chunk_of(built.path, 5, "gram", index))
    assert make().computed == ROWS[index]
    assert content_of(built.path) == before


def test_chunks_damaged_in_two_layers_cost_each_clip_once(copy, make):
    path = copy()
    before = content_of(path)
    for layer, index in ((1, 0), (5, 0), (5, 3)):
        flip(chunk_of(path, layer, "gram", index))
    assert make().computed == ROWS[0] + ROWS[3]
    assert content_of(path) == before


def test_a_damaged_layer_that_is_not_asked_for_stays_as_it_is(copy, make):
    path = copy()
    flip(chunk_of(path, 5, "gram", 1))
    before = content_of(path)
    assert make(layers=(1,)).computed == 0
    assert content_of(path) == before


@pytest.mark.parametrize("array", ["gram", "norm"])
def test_adding_a_layer_leaves_a_damaged_one_to_be_mended(array, make):
    path = make(layers=(5,)).path
    before = content_of(path / "layer05")
    flip(chunk_of(path, 5, array, 1))
    make(layers=(1,))
    assert layers_of(path) == [1, 5]
    make(layers=(5,))
    assert content_of(path / "layer05") == before


@pytest.mark.parametrize("name", ["zarr.json", "gram/zarr.json", "manifest/zarr.json"])
@pytest.mark.parametrize("damage", ["flip", "truncate", "delete", "empty"])
def test_damaged_metadata_of_a_layer_is_found_and_made_again(name, damage, copy, make, store):
    path = copy()
    before = content_of(path)
    file = path / "layer05" / name
    DAMAGES[damage](file, None, None)
    assert file in {p.path for p in verify_cache(path, [store.path])}
    with pytest.raises(DamagedError, match=str(file)):
        GramCache(path, store)
    make()
    assert content_of(path) == before
    assert not list(verify_cache(path, [store.path]))


@pytest.mark.parametrize("layers", [(1, 5), (5,)], ids=str)
def test_a_deleted_layer_is_missed_and_made_again(layers, make, store):
    path = make(layers=layers).path
    before = content_of(path)
    shutil.rmtree(path / "layer05")
    assert any(
        (p.path, p.problem) == (path / "layer05", "missing")
        for p in verify_cache(path, [store.path])
    )
    assert make(layers=layers).computed == 15
    assert content_of(path) == before
    assert not list(verify_cache(path, [store.path]))


@pytest.mark.parametrize("name", ["zarr.json", "manifest/zarr.json"])
@pytest.mark.parametrize("damage", ["flip", "truncate", "delete", "empty"])
def test_a_damaged_root_is_written_again_and_the_layers_are_kept(name, damage, copy, make, store):
    path = copy()
    before = content_of(path)
    DAMAGES[damage](path / name, None, None)
    assert list(verify_cache(path, [store.path]))
    with pytest.raises((DamagedError, InputError)):
        GramCache(path, store)
    assert make().computed == 0
    assert content_of(path) == before
    assert not list(verify_cache(path, [store.path]))


def test_a_root_without_its_manifest_folder_is_written_again(copy, make, store):
    path = copy()
    before = content_of(path)
    shutil.rmtree(path / "manifest")
    assert list(verify_cache(path, [store.path]))
    assert make().computed == 0
    assert content_of(path) == before


def test_a_layer_that_was_put_back_from_an_older_cache_is_found(copy, built, store):
    path = copy()
    shutil.rmtree(path / "layer05")
    shutil.copytree(built["packed", "older"] / "layer05", path / "layer05")
    (problem,) = verify_cache(path, [store.path])
    assert problem.path == path / "layer05"
    assert "another version" in problem.problem


def rewrite(path, layer, changes):
    """Change rows of arrays of a layer, and make checksums and manifest fit: no damage to see.

    ``changes``: array -> function of all its rows.
    """
    found = CacheLayer(path, layer)
    folder, arrays = found.folder, {}
    for name in ARRAYS[found.key.codec]:
        inner = zarr.open_group(folder, mode="r")[name]
        rows = changes.get(name, lambda rows: rows)(inner[:].copy())
        spec = replace(found.values.spec, name=name, shape=inner.shape, dtype=inner.dtype.name)
        arrays[name] = [
            write_chunk(folder, spec, index, encode(spec, index, rows[spec.span(index)]))
            for index in range(spec.chunks)
        ]
    attributes = json.loads((folder / "zarr.json").read_bytes())["attributes"]["antigram"]
    manifest = write_manifest(folder, arrays)
    attributes["fingerprint"] = layer_fingerprint(attributes, manifest.digests())
    create_group(folder, {"antigram": attributes})
    manifest = write_manifest(folder, arrays)
    for name in arrays:  # what a reader opens without complaint
        MappedArray(folder, name, manifest.crcs(name), "").read()


def put(row, value):
    def change(rows):
        rows[row] = rows[value] if isinstance(value, int) else value(rows[row])
        return rows

    return change


# what was replaced -> array (None: the rows') and the new value of clip 6
REPLACED = {
    "the row by another clip's": (None, put(6, 12)),
    "the row by zeros": (None, put(6, np.zeros_like)),
    "the norm by twice itself": ("norm", put(6, lambda value: 2 * value)),
    "the row's norm by half of it": ("row_norm", put(6, lambda value: value / 2)),
}


@pytest.mark.parametrize("what", REPLACED)
@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("codec", ARRAYS)
def test_content_that_was_replaced_with_its_checksums_is_found_by_the_net(
    codec, dtype, what, make, store, teacher
):
    path = make(codec=codec, dtype=dtype).path
    array, change = REPLACED[what]
    rewrite(path, 5, {array or ARRAYS[codec][0]: change})
    problems = list(recompute(path, store, teacher, 15, CPU))
    assert {p.path for p in problems} == {path / "layer05"}
    assert [store.clip_ids[6] in p.problem for p in problems] == [True]


@pytest.mark.parametrize("rows", ["as they are", "of another clip"])
def test_an_energy_that_was_replaced_with_its_checksums_is_found_by_the_net(
    rows, copy, store, teacher
):
    path = copy("lowrank")
    changes = {"energy": put(6, np.zeros_like)}
    if rows != "as they are":  # the lower the energy, the more is a row allowed to differ
        changes["vectors"] = put(6, 12)
    rewrite(path, 5, changes)
    assert [store.clip_ids[6] in p.problem for p in recompute(path, store, teacher, 15, CPU)] == [
        True
    ]


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("codec", ARRAYS)
def test_the_net_finds_nothing_in_a_good_cache(codec, dtype, make, store, teacher):
    path = make(codec=codec, dtype=dtype).path
    assert not list(recompute(path, store, teacher, 15, CPU))
    rewrite(path, 5, {})
    assert not list(recompute(path, store, teacher, 15, CPU))


@pytest.mark.parametrize("aggregation", ["mean", "max", "compmul"])
def test_the_net_finds_nothing_in_a_good_cache_of_maps(aggregation, make, store, teacher):
    path = make(codec="auto", aggregation=aggregation, dtype="float32").path
    assert not list(recompute(path, store, teacher, 15, CPU))


def test_no_more_clips_are_drawn_than_were_asked_for(make, store, teacher):
    path = make(layers=(5,)).path
    rewrite(path, 5, {"norm": lambda rows: 2 * rows})
    assert [len(list(recompute(path, store, teacher, n, CPU))) for n in (1, 4, 99)] == [1, 4, 15]


def test_a_cache_of_another_store_or_net_cannot_be_recomputed(
    copy, store, other_store, teacher, other_frozen
):
    path = copy()
    with pytest.raises(InputError, match="layer 1 was made from another store"):
        list(recompute(path, other_store, teacher, 4, CPU))
    with pytest.raises(InputError, match="layer 1 was made from another teacher"):
        list(recompute(path, store, other_frozen, 4, CPU))


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
            continue  # of a rank that loses nothing the energy is 1 in any net
        if kind == "flip":
            flip(file, int(rng.integers(len(raw))), 1 << int(rng.integers(8)))
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
