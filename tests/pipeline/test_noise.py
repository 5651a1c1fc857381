from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from antigram.pipeline.audio.noise import (
    SNR_LEVELS,
    NoiseBank,
    mix,
    mix_noise,
    noise_class,
    noise_files,
)
from antigram.pipeline.choices import Noise
from antigram.pipeline.corpus import CorpusError
from tests.reference.scipy_features import rms
from tests.support.corpus_trees import RATE, sound, wav

DBFS_25 = 10 ** (-25 / 20)
LEVELS = [*SNR_LEVELS["low"], *SNR_LEVELS["high"]]


@pytest.fixture(scope="module")
def bank(noise_home, tmp_path_factory) -> NoiseBank:
    target = tmp_path_factory.mktemp("bank") / "noise.f32"
    return NoiseBank.build(noise_files([noise_home])[1], RATE, target)


def test_the_levels_are_those_of_the_paper():
    assert SNR_LEVELS == {"low": (20, 25, 30, 35, 40), "high": (0, 2.5, 5, 7.5, 10)}


@pytest.mark.parametrize("released", [False, True], ids=["exact", "released"])
@pytest.mark.parametrize("snr_db", LEVELS)
def test_the_snr_is_reached_and_half_of_it_in_released_mode(snr_db, released, rng):
    speech = np.r_[0.3 * rng.standard_normal(9_000), np.zeros(7_000)].astype(np.float32)
    noise = (0.001 * rng.standard_normal(16_000)).astype(np.float32)
    mixed = mix(speech, noise, snr_db, released=released)
    # Speech scaled to -25 dBFS over the padded clip; what is left of the mixture is the noise.
    scaled = speech.astype(np.float64) * DBFS_25 / rms(speech)
    rest = mixed - scaled
    got = 20 * np.log10(rms(scaled) / rms(rest))
    assert got == pytest.approx(snr_db / 2 if released else snr_db, abs=0.1)
    along = noise @ rest / (rms(noise) * rms(rest) * noise.size)
    assert along == pytest.approx(1, abs=1e-5)  # it is the noise, not something as loud


def test_speech_and_noise_are_both_at_25_dbfs_for_an_snr_of_zero(rng):
    speech = np.zeros(16_000, np.float32)
    speech[::2] = rng.standard_normal(8_000)
    noise = np.zeros(16_000, np.float32)
    noise[1::2] = 40 * rng.standard_normal(8_000)
    mixed = mix(speech, noise, 0.0, released=False)
    assert 20 * np.log10(rms(mixed[::2]) / np.sqrt(2)) == pytest.approx(-25, abs=1e-4)
    assert 20 * np.log10(rms(mixed[1::2]) / np.sqrt(2)) == pytest.approx(-25, abs=1e-4)


def test_mixing_leaves_its_inputs_alone(rng):
    speech, noise = rng.standard_normal((2, 1_000)).astype(np.float32)
    copies = speech.copy(), noise.copy()
    mix(speech, noise, 5.0, released=False)
    np.testing.assert_array_equal(copies, (speech, noise))


def _mix(bank, clip_id: str, *, seed: int = 0, level: Noise = "high", y=None):
    speech = sound(1) if y is None else y
    return mix_noise(
        speech, bank, bank.samples(), level=level, snr_mode="exact", seed=seed, clip_id=clip_id
    )


def test_silent_speech_stays_clean(bank):
    mixed = _mix(bank, "x", y=np.zeros(RATE, np.float32))
    assert mixed.noise == -1
    assert np.isnan(mixed.snr_db)
    np.testing.assert_array_equal(mixed.y, np.zeros(RATE))


def test_what_is_mixed_in_depends_on_seed_and_clip_id_only(bank):
    one, other = _mix(bank, "a"), _mix(bank, "b")
    again = _mix(bank, "a")
    np.testing.assert_array_equal(one.y, again.y)
    assert (one.noise, one.snr_db) == (again.noise, again.snr_db)
    assert not np.array_equal(one.y, other.y)
    assert not np.array_equal(one.y, _mix(bank, "a", seed=1).y)
    # Another clip's sound under the same id gets the same level, class and excerpt.
    louder = _mix(bank, "a", y=sound(5))
    assert (louder.noise, louder.snr_db) == (one.noise, one.snr_db)


@pytest.mark.parametrize("level", ["low", "high"])
def test_all_five_levels_and_all_classes_are_drawn_evenly(level, bank):
    short = sound(1, 400)
    drawn = [_mix(bank, f"clip{n}", level=level, y=short) for n in range(1_000)]
    levels = Counter(m.snr_db for m in drawn)
    assert set(levels) == set(SNR_LEVELS[level])
    assert min(levels.values()) > 150
    classes = Counter(m.noise for m in drawn)
    assert set(classes) == set(range(len(bank.classes)))
    assert min(classes.values()) > 150  # though Babble has two files and the others one


def test_both_files_of_a_class_are_drawn(bank, noise_home):
    spans = bank.spans[bank.classes.index("Babble")]
    samples = bank.samples()
    firsts = {bank.excerpt(samples, 0, f"c{n}", spans[0][1])[1][0] for n in range(200)}
    assert {samples[first] for first, _ in spans} <= firsts


def test_an_excerpt_is_a_run_of_samples_of_one_file(bank):
    samples = np.asarray(bank.samples())
    starts = set()
    for n in range(200):
        label, y, _ = bank.excerpt(bank.samples(), 3, f"clip{n}", 8_000)
        found = [
            place
            for first, length in bank.spans[label]
            if length >= 8_000
            for place in np.flatnonzero(samples[first : first + length - 7_999] == y[0]) + first
            if np.array_equal(samples[place : place + 8_000], y)
        ]
        looped = [length for _, length in bank.spans[label] if length < 8_000]
        assert found or looped
        starts.update(found)
    assert len(starts) > 100  # not always the start of the file, as in the released code


def test_a_noise_file_shorter_than_the_clip_is_looped(bank):
    label = bank.classes.index("Munching")
    first, length = bank.spans[label][0]
    assert length == 5_000
    whole = np.asarray(bank.samples()[first : first + length])
    ids = (f"clip{n}" for n in range(1_000))
    y = next(y for i, y, _ in (bank.excerpt(bank.samples(), 0, c, RATE) for c in ids) if i == label)
    np.testing.assert_array_equal(y[length:], y[:-length])
    offsets = np.flatnonzero(whole == y[0])
    assert any(np.array_equal(y[:length], np.r_[whole[o:], whole[:o]]) for o in offsets)


def test_a_silent_excerpt_is_drawn_anew(tmp_path):
    y = np.zeros(10 * RATE, np.float32)
    y[-3_000:] = sound(1, 3_000)
    path = wav(tmp_path / "Babble_1.wav", y)
    bank = NoiseBank.build({"Babble": [path]}, RATE, tmp_path / "noise.f32")
    assert all(bank.excerpt(bank.samples(), 0, f"c{n}", 1_000)[1].any() for n in range(50))


@pytest.mark.parametrize(
    ("stem", "name"),
    [
        ("Babble_12", "Babble"),
        ("Neighbor_6", "NeighborSpeaking"),
        ("NeighborSpeaking_14", "NeighborSpeaking"),
        ("AirportAnnouncement_11", "AirportAnnouncements"),
        ("AirportAnnouncements_1", "AirportAnnouncements"),
        ("CopyMachine_10", "CopyMachine"),
        ("WasherDryer_7", "WasherDryer"),
    ],
)
def test_noise_classes_by_name(stem, name):
    assert noise_class(stem) == name


def test_the_16_classes_of_one_file_are_left_out_and_11_remain():
    one_file = (
        "Bus_1 CafeTeria_1 Cafe_1 Car_1 Field_1 Hallway_1 Kitchen_1 LivingRoom_1 Metro_1 Office_1 "
        "Park_1 Restaurant_1 Square_1 Station_1 Traffic_1 Washing_1"
    ).split()
    assert [noise_class(stem) for stem in one_file] == [None] * 16
    used = (
        "AirConditioner AirportAnnouncements Babble CopyMachine Munching NeighborSpeaking "
        "ShuttingDoor SqueakyChair Typing VacuumCleaner WasherDryer"
    ).split()
    assert [noise_class(f"{name}_2") for name in used] == used


def test_noise_is_found_in_noise_train_or_in_the_folder_itself(noise_home, tmp_path):
    inside, classes = noise_files([tmp_path / "none", noise_home])
    assert inside == noise_home / "noise_train"
    assert list(classes) == [
        "AirportAnnouncements", "Babble", "Munching", "NeighborSpeaking", "Typing",
    ]  # fmt: skip
    assert [p.name for p in classes["Babble"]] == ["Babble_1.wav", "Babble_2.wav"]
    assert noise_files([inside]) == (inside, classes)


def test_no_noise_says_where_it_was_looked_for(tmp_path):
    with pytest.raises(CorpusError, match=f"no noise recordings .*{tmp_path}.*`noise_source`"):
        noise_files([tmp_path])


def test_the_identity_of_the_noise_sees_names_and_bytes(tmp_path):
    one, two = wav(tmp_path / "A_1.wav", sound(1)), wav(tmp_path / "A_2.wav", sound(2))
    files = {"A": [one, two]}
    before = NoiseBank.digest_of(files)
    assert NoiseBank.digest_of(files) == before
    assert NoiseBank.digest_of({"A": [one]}) != before
    assert NoiseBank.digest_of({"B": [one, two]}) != before
    wav(one, sound(3))
    assert NoiseBank.digest_of(files) != before


@pytest.mark.parametrize(
    ("y", "says"), [(np.zeros(100), "silent from end to end"), (np.zeros(0), "no audio frames")]
)
def test_unusable_noise_is_refused_by_name(y, says, tmp_path):
    path = wav(tmp_path / "Babble_1.wav", y)
    with pytest.raises(CorpusError, match=f"Babble_1.wav: {says}"):
        NoiseBank.build({"Babble": [path]}, RATE, tmp_path / "n.f32")
