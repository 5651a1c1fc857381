"""Caches of all 13 layers of a VGG16 in every codec, compared with the teacher in float64."""

from itertools import product
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import zarr

import antigram.cache.plan
from antigram.cache.build import build_cache
from antigram.cache.grams import GramCache
from antigram.cache.key import CacheKey
from antigram.cache.layer import CacheLayer, layers_of
from antigram.cache.plan import plan_layers
from antigram.model.choices import Codec, Dtype
from antigram.model.loss.at_loss import at_loss
from antigram.model.loss.sources import TapSpec
from antigram.model.nets.arch import Arch
from antigram.model.nets.networks import tap_shape
from antigram.pipeline.errors import InputError
from antigram.studies.verify import verify_cache
from tests.reference.gram_loops import gram_loops
from tests.support.checkpoints import save_teacher
from tests.support.files import bytes_of
from tests.support.nets import CPU, maps_of

ARCH = Arch("vgg16", 4)
ALL = tuple(range(1, 14))
CODECS: tuple[Codec, ...] = ("packed", "factor", "lowrank")
DTYPES: tuple[Dtype, ...] = ("float32", "float16")
ARRAY = {"packed": "gram", "factor": "factor", "lowrank": "vectors"}
SILENT = 5
ENERGY = 0.9999  # default of lowrank


@pytest.fixture(scope="module")
def nets(corpus, store):
    folder = corpus.parent
    return [save_teacher(folder / f"wide{n}.pt", ARCH, store, seed=n) for n in (21, 22)]


@pytest.fixture(scope="module")
def whole(nets, store):
    """Return cosines of two networks' Grams, the teacher's Grams and the other's maps, by layer.

    All but the maps are in float64.
    """
    x = torch.from_numpy(store.features.read())[:, None]
    wide = [maps_of(net.net().double(), x.double(), ALL, "relu") for net in nets]
    cosines, grams = {}, {}
    for layer in ALL:
        teacher, other = (np.stack([gram_loops(m) for m in w[layer].numpy()]) for w in wide)
        norms = [np.linalg.norm(g, axis=(1, 2)) for g in (teacher, other)]
        cosines[layer] = (teacher * other).sum((1, 2)) / norms[0] / norms[1]
        grams[layer] = teacher
    own = maps_of(nets[1].net(), x, ALL, "relu")
    return SimpleNamespace(cosines=cosines, grams=grams, own=own)


@pytest.fixture
def make(nets, store, tmp_path):
    """Build a cache of the teacher."""

    def run(name="grams", *, layers=(5,), of=store, folder=tmp_path, batch_clips=4, **asked):
        plans = plan_layers(of, nets[0], TapSpec(arch=ARCH, layers=layers), **asked)
        return build_cache(
            of,
            nets[0],
            plans,
            folder / "grams" / f"{name}.zarr",
            made_from={"store": of.name, "checkpoint": "frozen"},
            batch_clips=batch_clips,
            device=CPU,
        )

    return run


@pytest.fixture(scope="module")
def caches(nets, store, tmp_path_factory):
    """Return a cache of all layers by codec and dtype, with chunks of 4 rows."""
    folder = tmp_path_factory.mktemp("every codec")
    spec = TapSpec(arch=ARCH, layers=ALL)
    made = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(antigram.cache.plan, "_ROWS_PER_CHUNK", 4)
        for codec, dtype in product(CODECS, DTYPES):
            plans = plan_layers(store, nets[0], spec, codec=codec, dtype=dtype)
            path = folder / f"{codec} {dtype}.zarr"
            made[codec, dtype] = build_cache(
                store, nets[0], plans, path, made_from={}, batch_clips=4, device=CPU
            )
    return made


every_layer = pytest.mark.parametrize("layer", ALL)
every_dtype = pytest.mark.parametrize("dtype", DTYPES)
every_codec = pytest.mark.parametrize("codec", CODECS)


def energies(grams, rank):
    """Return the share of each clip's ||G||^2 in its first eigenvalues, in float64."""
    squares = np.linalg.eigvalsh(grams)[:, ::-1] ** 2
    return squares[:, :rank].sum(1) / squares.sum(1)


def rounding(layer, codec, dtype):
    """Return the error of a cosine that rounding may cause, for each clip.

    The silent clip has a map of equal values, whose rounding errors do not average out: seen 1.4e-4
    in float16, and 9e-5 in float32 at layer 1 (see test_build.py). Seen for other clips: 1.4e-6 in
    float32; in float16 8e-5 packed, 2e-5 factor, 1.1e-4 lowrank, but 1.3e-4 packed and 2.5e-4
    lowrank at layers 1 and 2. These have 4 channels, so a row has only 10 or 16 values, and one of
    them may be off by 2^-12.
    """
    allowed = np.full(15, 1e-5)
    if dtype == "float16":
        allowed[:] = 1e-4 if codec != "lowrank" else 2e-4
        if layer <= 2 and codec != "factor":
            allowed[:] = 2e-4 if codec == "packed" else 4e-4
    allowed[SILENT] = max(allowed[SILENT], 3e-4)
    return allowed


@every_dtype
@every_codec
@every_layer
def test_cosines_read_from_a_cache_are_those_of_the_net(layer, codec, dtype, caches, store, whole):
    clips = np.random.default_rng(layer).permutation(15)
    rows = GramCache(caches[codec, dtype].path, store, [layer]).read(clips)[layer]
    assert rows.codec == codec
    assert rows.data.dtype == getattr(torch, dtype)
    got = at_loss(whole.own[layer][clips], rows, "gram").double().sqrt().numpy()
    allowed = rounding(layer, codec, dtype)
    if codec == "lowrank":
        # The stored energy does not serve: float32 cannot hold 1 - 3e-8, which is 1.7e-4 here.
        kept = np.minimum(1, energies(whole.grams[layer], rows.data.shape[2]))
        allowed += np.sqrt(2 - 2 * np.sqrt(kept))
    apart = np.abs(got - whole.cosines[layer][clips])
    assert (apart <= allowed[clips]).all(), apart


@every_dtype
@every_codec
def test_a_cache_of_every_layer_is_whole_and_of_the_size_it_says(codec, dtype, caches, store):
    built = caches[codec, dtype]
    assert (built.clips, built.computed, layers_of(built.path)) == (15, 15, list(ALL))
    assert not list(verify_cache(built.path, [store.path]))
    for layer, found in built.layers.items():
        channels, positions = tap_shape(ARCH, layer, "relu", store.shape)
        last = {
            "packed": (channels * (channels + 1) // 2,),
            "factor": (channels, positions),
            "lowrank": (channels, found.values.shape[-1]),
        }[codec]
        assert found.values.shape == (15, *last)
        beside = 12 if codec == "lowrank" else 8
        size = np.prod(last) * np.dtype(dtype).itemsize + beside
        assert found.describe()["bytes_per_clip"] == size


@every_dtype
@every_codec
def test_any_zarr_reader_opens_the_arrays_of_a_codec(codec, dtype, caches, whole):
    group = zarr.open_group(caches[codec, dtype].path, mode="r")
    names = {ARRAY[codec], "norm", "row_norm"} | ({"energy"} if codec == "lowrank" else set())
    for layer in (1, 8, 13):
        inner: Any = group[f"layer{layer:02d}"]
        assert {name for name, _ in inner.arrays()} == names
        assert inner[ARRAY[codec]].dtype == dtype
        assert {inner[name].dtype.name for name in names - {ARRAY[codec]}} == {"float32"}
        norm = np.linalg.norm(whole.grams[layer], axis=(1, 2))
        sounds = np.arange(15) != SILENT  # which test_build.py covers
        np.testing.assert_allclose(inner["norm"][sounds], norm[sounds], rtol=1e-5)
        data = inner[ARRAY[codec]][:].astype(np.float64)
        stands = data if codec == "packed" else data @ data.transpose(0, 2, 1)
        got, want = inner["row_norm"][:], np.linalg.norm(stands.reshape(15, -1), axis=1)
        np.testing.assert_allclose(got[sounds], want[sounds], rtol=1e-5)  # seen: 2.5e-6
        assert got[SILENT] == pytest.approx(want[SILENT], rel=3e-4)


@pytest.mark.parametrize("width", [4, 16])
def test_auto_takes_the_factor_where_it_is_a_tenth_smaller(width, store, corpus):
    arch = Arch("vgg16", width)
    net = save_teacher(corpus.parent / f"auto{width}.pt", arch, store)
    plans = plan_layers(store, net, TapSpec(arch=arch, layers=ALL), codec="auto")
    found = {layer: plan.key.codec for layer, plan in plans.items()}
    shapes = {layer: tap_shape(arch, layer, "relu", store.shape) for layer in ALL}
    assert found == {
        layer: "factor" if positions <= 0.9 * (channels + 1) / 2 else "packed"
        for layer, (channels, positions) in shapes.items()
    }
    # 128 channels at 7 x 8 positions; with a quarter of the channels, the triangle is smaller.
    assert [n for n in ALL if found[n] == "factor"] == ([11, 12, 13] if width == 16 else [])


def test_a_cache_by_auto_mixes_codecs_and_is_read_as_one(store, corpus, tmp_path):
    arch = Arch("vgg16", 16)
    net = save_teacher(corpus.parent / "auto.pt", arch, store)
    plans = plan_layers(store, net, TapSpec(arch=arch, layers=(8, 13)), codec="auto")
    path = tmp_path / "grams" / "auto.zarr"
    build_cache(store, net, plans, path, made_from={}, device=CPU)
    clips = np.array([3, 11])
    rows = GramCache(path, store).read(clips)
    assert {n: r.codec for n, r in rows.items()} == {8: "packed", 13: "factor"}
    x = torch.from_numpy(store.features.read()[clips])[:, None].double()
    for layer, maps in maps_of(net.net().double(), x, (8, 13), "relu").items():
        for place, clip in enumerate(maps.numpy()):
            matrix = gram_loops(clip)
            got = rows[layer].matrices(128)[place].double().numpy()
            # Rounded once: 2^-11 of the largest entry; seen 4.2e-5.
            np.testing.assert_allclose(got, matrix / np.linalg.norm(matrix), rtol=0, atol=5e-4)


@pytest.mark.parametrize("energy", [None, 0.9, 0.999, 1.0])
@pytest.mark.parametrize("layer", [1, 7, 13])
def test_a_rank_by_energy_is_the_least_that_keeps_it_in_every_clip(layer, energy, make, whole):
    built = make(layers=(layer,), codec="lowrank", energy=energy)
    found = built.layers[layer]
    rank, want = found.values.shape[-1], ENERGY if energy is None else energy
    assert found.key.energy == want
    assert found.key.rank is None
    kept: Any = zarr.open_group(built.path, mode="r")[f"layer{layer:02d}/energy"][:]
    np.testing.assert_allclose(kept, energies(whole.grams[layer], rank), rtol=0, atol=2e-6)
    assert kept.min() >= want - 1e-6  # float32; all 15 clips are in the pilot
    if want < 1:
        assert rank == 1 or energies(whole.grams[layer], rank - 1).min() < want
    described = found.describe()
    assert (described["rank"], described["energy_short"]) == (rank, int((kept < want).sum()))
    assert described["energy_least"] == float(kept.min())
    # Its rows are rounded to float16: seen 1.5e-4 at a rank that loses nothing.
    assert described["cosine_error_sample"] <= described["cosine_error_bound"] + 3e-4
    assert found.pilot["clips"] == 15


@pytest.mark.parametrize("rank", [1, 3, 16])
def test_a_rank_asked_for_is_the_one_stored(rank, make, whole):
    built = make(layers=(6,), codec="lowrank", rank=rank, dtype="float32")
    found = built.layers[6]
    assert (found.key.rank, found.key.energy) == (rank, None)
    assert found.values.shape == (15, 16, rank)
    np.testing.assert_allclose(found.energy, energies(whole.grams[6], rank), rtol=0, atol=2e-6)
    assert found.describe()["energy_short"] == 0


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ({"codec": "lowrank", "energy": 0.9, "rank": 3}, "one of the two"),
        ({"codec": "packed", "energy": 0.9}, "belong to `codec=lowrank`"),
        ({"codec": "auto", "rank": 3}, "belong to `codec=lowrank`"),
        ({"codec": "factor", "energy": 0.9, "rank": 3}, "belong to `codec=lowrank`"),
        ({"codec": "lowrank", "rank": 0}, "`rank` 0: layer 5 has 16 channels; wanted 1 to 16"),
        ({"codec": "lowrank", "rank": -1}, "`rank` -1: layer 5"),
        ({"codec": "lowrank", "rank": 17}, "`rank` 17: layer 5 has 16 channels"),
        ({"codec": "lowrank", "energy": 0.0}, "`energy` 0.0: wanted a share"),
        ({"codec": "lowrank", "energy": -0.5}, "`energy` -0.5: wanted a share"),
        ({"codec": "lowrank", "energy": 1.0001}, "`energy` 1.0001: wanted a share"),
        ({"codec": "lowrank", "energy": float("nan")}, "`energy` nan: wanted a share"),
        ({"codec": "square"}, "codec is 'square'; wanted: auto, packed, factor, lowrank"),
        ({"codec": "map"}, "`codec=map`: holds the other aggregations"),
    ],
    ids=str,
)
def test_what_has_no_meaning_is_refused_before_anything_is_computed(asked, says, make, tmp_path):
    with pytest.raises(InputError, match=says):
        make(**asked)
    assert not (tmp_path / "grams").exists()


@pytest.mark.parametrize("codec", ["factor", "lowrank"])
def test_a_codec_of_grams_cannot_hold_another_aggregation(codec, store, nets):
    spec = TapSpec(arch=ARCH, layers=(5,), aggregation="max")
    with pytest.raises(
        InputError, match=f"`codec={codec}`: the aggregation max is stored as a map"
    ):
        plan_layers(store, nets[0], spec, codec=codec)


ASKED = {
    "packed": {"codec": "packed"},
    "factor": {"codec": "factor"},
    "by energy": {"codec": "lowrank", "energy": 0.99},
    "by rank": {"codec": "lowrank", "rank": 4},
}
every_asked = pytest.mark.parametrize("asked", ASKED.values(), ids=ASKED)


@every_asked
def test_a_second_build_of_the_same_key_computes_nothing(asked, make):
    first = make(**asked)
    before = bytes_of(first.path)
    again = make(**asked, batch_clips=3)
    assert (first.computed, again.computed) == (15, 0)
    assert bytes_of(again.path) == before


@every_asked
def test_two_builds_of_a_codec_are_the_same_bytes(asked, make):
    assert bytes_of(make("one", **asked).path) == bytes_of(make("two", **asked).path)


# Two requests that differ in one field of the key, by field.
DIFFERS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "energy": ({"codec": "lowrank", "energy": 0.99}, {"codec": "lowrank", "energy": 0.999}),
    "rank": ({"codec": "lowrank", "rank": 3}, {"codec": "lowrank", "rank": 4}),
    "precision": ({"codec": "packed"}, {"codec": "packed", "precision": "bf16"}),
    "codec": ({"codec": "packed"}, {"codec": "factor"}),
    "dtype": ({"codec": "factor"}, {"codec": "factor", "dtype": "float32"}),
}


@pytest.mark.parametrize("name", DIFFERS)
def test_another_value_of_a_field_makes_another_key_and_other_rows(name, make):
    one, two = DIFFERS[name]
    was, is_ = (make(**asked) for asked in (one, two))
    assert (was.computed, is_.computed) == (15, 15)
    keys = [built.layers[5].key.to_json() for built in (was, is_)]
    assert [field for field in keys[0] if keys[0][field] != keys[1][field]] == [name]
    assert was.layers[5].fingerprint != is_.layers[5].fingerprint
    assert bytes_of(is_.path) == bytes_of(make("fresh", **two).path)
    assert CacheKey.from_json(keys[1]) == CacheLayer(is_.path, 5).key


def test_the_default_energy_is_the_same_key_as_naming_it(make):
    make(codec="lowrank")
    assert make(codec="lowrank", energy=ENERGY).computed == 0


def test_arithmetic_in_bf16_makes_rows_that_are_near_and_not_the_same(make, store):
    clips = np.arange(15)
    exact, half = (
        GramCache(make(name, precision=name, dtype="float32").path, store).read(clips)[5].data
        for name in ("float32", "bf16")
    )
    apart = (exact - half).norm(dim=1)
    assert (apart > 1e-5).any()
    assert apart.max() < 0.05  # 8 bits of mantissa through five layers; seen 7e-3


@pytest.mark.parametrize(("there", "added"), [("packed", "lowrank"), ("lowrank", "factor")])
def test_a_layer_of_another_codec_is_added_and_the_others_are_left_alone(
    there, added, make, store, whole
):
    before = bytes_of(make(codec=there).path / "layer05")
    built = make(layers=(9,), codec=added)
    assert built.computed == 15
    assert bytes_of(built.path / "layer05") == before
    assert not list(verify_cache(built.path, [store.path]))
    rows = GramCache(built.path, store).read(np.arange(15))
    assert {n: r.codec for n, r in rows.items()} == {5: there, 9: added}
    for layer, found in rows.items():
        got = at_loss(whole.own[layer], found, "gram").double().sqrt().numpy()
        lost = (2 - 2 * ENERGY**0.5) ** 0.5 if found.codec == "lowrank" else 0
        apart = np.abs(got - whole.cosines[layer])
        assert (apart <= lost + rounding(layer, found.codec, "float16")).all()
