from __future__ import annotations

import json
from dataclasses import FrozenInstanceError, fields
from typing import get_args

import pytest

from antigram.pipeline.choices import Longer
from antigram.pipeline.errors import InputError, StoredDataError
from antigram.pipeline.features.recipe import Recipe
from antigram.pipeline.storage.hashing import canonical_json, digest

BASE = Recipe(corpus="gsc", options={"words": "digits"})
# One other value for each field: a field added later must be added here.
OTHER = {
    "corpus": "fsdd",
    "options": {"words": "all"},
    "seconds": 4.0,
    "overlap": 0.5,
    "longer": "segment",
    "noise": "high",
    "snr_mode": "released",
    "noise_files": "ab" * 32,
    "split": "by:speaker",
    "seed": 1,
    "limit_per_class": 10,
    "limit": 100,
    "balance": True,
    "last_window": "end",
    "dtype": "float16",
    "sample_rate": 8_000,
    "n_fft": 512,
    "hop": 64,
    "window": "hann",
    "resampler": "soxr-VHQ",
    "version": "prepare/2",
    "within": "0" * 64,
    "features": "mel",
    "n_mels": 30,
}


def changed(name):
    """Return the base with another value of one field, and mel bands where it needs them."""
    needed = {"features": "mel"} if name == "n_mels" else {}
    return Recipe(**{**BASE.to_json(), **needed, name: OTHER[name]})


def test_the_table_names_every_field():
    assert list(OTHER) == [f.name for f in fields(Recipe)]


@pytest.mark.parametrize("name", OTHER)
def test_each_field_alone_changes_the_fingerprint(name):
    assert changed(name) != BASE
    assert changed(name).fingerprint != BASE.fingerprint


def test_all_those_fingerprints_differ():
    prints = {changed(name).fingerprint for name in OTHER}
    assert len(prints) == len(OTHER)


@pytest.mark.parametrize("name", [n for n in OTHER if n != "version"])
def test_json_and_back_is_the_same_recipe(name):
    recipe = changed(name)
    again = Recipe.from_json(json.loads(json.dumps(recipe.to_json())))
    assert again == recipe
    assert again.fingerprint == recipe.fingerprint


@pytest.mark.parametrize(
    "extra", [{"pitch": 3}, {"version": "prepare/0"}, {"version": "prepare/2"}, {"version": None}]
)
def test_an_unknown_field_or_version_is_refused(extra):
    with pytest.raises(StoredDataError, match="this antigram reads 'prepare/1'"):
        Recipe.from_json({**BASE.to_json(), **extra})


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("seconds", 0.0, "`seconds` is"),
        ("seconds", -1.0, "`seconds` is"),
        ("seconds", float("nan"), "`seconds` is"),
        ("seconds", float("inf"), "`seconds` is"),
        ("seconds", 0.0159, "shorter than one STFT window of 0.016 s"),
        ("overlap", 1.0, "`overlap` is 1.0"),
        ("overlap", -0.1, "`overlap` is -0.1"),
        ("overlap", float("nan"), "`overlap` is nan"),
        ("limit_per_class", -1, r"limit.* is -1"),
        ("limit", -5, r"limit.* is -5"),
        ("last_window", "drop", "last_window is 'drop'; wanted: pad, end"),
        ("longer", "fold", "longer is 'fold'; wanted: cut, segment"),
        ("noise", "medium", "noise is 'medium'; wanted: none, low, high"),
        ("snr_mode", "half", "snr_mode is 'half'"),
        ("dtype", "float64", "dtype is 'float64'; wanted: float32, float16"),
        ("split", "speaker", "split is 'speaker'; wanted: random, official, by:LABEL, kfold"),
    ],
)
def test_values_out_of_range_are_refused(field, value, says):
    with pytest.raises(InputError, match=says):
        Recipe(**{**BASE.to_json(), field: value})


def test_a_recipe_cannot_be_changed():
    with pytest.raises(FrozenInstanceError):
        BASE.seed = 3  # type: ignore[misc]


@pytest.mark.parametrize(("overlap", "hop"), [(0.0, 16_000), (0.5, 8_000), (0.99999, 1)])
def test_the_window_hop_follows_from_the_overlap(overlap, hop):
    assert Recipe(corpus="gsc", overlap=overlap).window_hop == hop


def test_canonical_json_is_the_same_for_equal_values():
    assert canonical_json({"b": 1, "a": [1.5, "ü"]}) == '{"a":[1.5,"ü"],"b":1}'
    assert digest({"b": 1, "a": 2}) == digest({"a": 2, "b": 1})
    assert digest([1, 2]) != digest([2, 1])


@pytest.mark.parametrize("name", ["a", "a#00000", "dir/a#7.wav"])
def test_a_segments_id_gives_the_recording_back(name):
    cut, segments = (Recipe(corpus="folder", longer=longer) for longer in get_args(Longer))
    for recipe, segment in ((segments, f"{name}#00012"), (cut, name)):
        assert recipe.segment_id(name, 12) == segment
        assert recipe.recording_of(segment) == name
