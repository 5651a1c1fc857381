"""MS-SNSD: mixtures of one speaker and one noise, their SNR, and the rotation of classes."""

from __future__ import annotations

import numpy as np
import pytest
import soundfile

from antigram.pipeline.audio.noise import SNR_LEVELS, NoiseBank, noise_class, noise_files
from antigram.pipeline.corpora.ms_snsd import MS_SNSD
from antigram.pipeline.corpus import CorpusError
from antigram.pipeline.features import row_audio
from antigram.pipeline.features.naming import recipe_for
from antigram.pipeline.features.preparation import prepare
from tests.support import corpus_trees
from tests.support.corpus_trees import RATE
from tests.support.listings import labels_of, rows_of

tree = corpus_trees.ms_snsd


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    return tree(tmp_path_factory.mktemp("ms-snsd"))


def test_mixtures_give_exactly_the_hours_asked_for(mixed):
    found = rows_of(MS_SNSD, mixed, hours="0.05")
    assert len(found.rows) == 180
    assert all(row.samples == RATE for row in found.rows)
    mixtures = {row.group: row.mixture for row in found.rows}
    lengths = [mixture.samples / RATE for mixture in mixtures.values()]
    assert all(length >= 10 for length in lengths[:-1])


def test_noise_classes_take_turns_and_misspelt_ones_are_one(mixed):
    found = rows_of(MS_SNSD, mixed, hours="0.2")
    turns = [row.mixture.noise for row in found.rows if row.clip_id.endswith("#00000")]
    classes = ["AirportAnnouncements", "Babble", "Munching", "NeighborSpeaking", "Typing"]
    assert turns[:10] == classes * 2  # and Bus, of one file, is left out
    assert set(labels_of(found, "noise")) == set(classes)


def test_a_mixture_has_one_speaker_and_one_of_the_five_levels(mixed):
    found = rows_of(MS_SNSD, mixed, hours="0.2")
    for row in found.rows:
        names = {path.partition("_")[0] for path, _ in row.mixture.clean}
        assert len(names) == 1
        speaker = dict(row.labels).get("speaker")
        assert speaker == (None if names == {"clnsp7.wav"} else names.pop())
        assert row.mixture.snr_db in SNR_LEVELS["low"]
    assert labels_of(found, "speaker").keys() == {"p225", "p234", None}


def test_the_source_of_a_fragment_is_the_recording_in_which_it_begins(mixed):
    found = rows_of(MS_SNSD, mixed, hours="0.02")
    first = [row for row in found.rows if row.group == found.rows[0].group]
    files = [path for path, _ in first[0].mixture.clean]  # of 3 s each
    assert [row.source(RATE) for row in first[:4]] == [
        f"{files[0]}#0", f"{files[0]}#1", f"{files[0]}#2", f"{files[1]}#0",
    ]  # fmt: skip


def test_a_mixture_has_its_snr_over_its_whole_length(mixed, tmp_path):
    found = rows_of(MS_SNSD, mixed, hours="0.02")
    row = found.rows[0]
    noise = noise_files([mixed])[1]
    bank = NoiseBank.build(noise, RATE, tmp_path / "noise.f32")
    _, recipe = recipe_for(MS_SNSD, {})
    context = row_audio.Context(recipe, mixed / "clean_train", bank)
    whole = row_audio._mixed(context, row.mixture)[0].astype(np.float64)
    clean = np.concatenate(
        [
            soundfile.read(mixed / "clean_train" / path)[0][:count]
            for path, count in row.mixture.clean
        ]
    )
    gain = 10 ** (-25 / 20) / np.sqrt(np.mean(clean**2))
    rest = whole - gain * clean
    snr_db = 20 * np.log10(gain * np.sqrt(np.mean(clean**2)) / np.sqrt(np.mean(rest**2)))
    assert snr_db == pytest.approx(row.mixture.snr_db, abs=0.1)


def test_a_store_of_mixtures_is_whole_and_never_parts_one(mixed, tmp_path):
    noise = noise_files([mixed])[1]
    corpus, recipe = recipe_for(
        MS_SNSD, {"hours": "0.05", "noise_files": NoiseBank.digest_of(noise)}
    )
    stores = [
        prepare(
            corpus, mixed / "clean_train", recipe, tmp_path / f"{n}.zarr", noise=noise, workers=n
        )
        for n in (1, 2)
    ]
    store = stores[0].store
    assert stores[0].store.fingerprint == stores[1].store.fingerprint
    assert store.main_label == "noise"
    assert set(store.classes) == {"noise", "speaker"}
    parts = {(c.partition("#")[0], s) for c, s in zip(store.clip_ids, store.split, strict=True)}
    assert len(parts) == len({mixture for mixture, _ in parts})
    assert set(store._array("snr_db").read().tolist()) <= set(SNR_LEVELS["low"])


def test_an_unreadable_clean_file_is_rejected_by_name(tmp_path):
    home = tree(tmp_path / "ms")
    (home / "clean_train" / "p234_002.wav").write_bytes(b"RIFF")
    found = rows_of(MS_SNSD, home, hours="0.01")
    assert [r.source for r in found.rejected] == ["p234_002.wav"]
    assert not any("p234_002" in path for r in found.rows for path, _ in r.mixture.clean)


@pytest.mark.parametrize("hours", ["0", "-1", "many", "nan", "inf"])
def test_hours_without_a_meaning_are_refused(hours):
    with pytest.raises(CorpusError, match="`hours`"):
        recipe_for(MS_SNSD, {"hours": hours})


@pytest.mark.corpora
def test_ms_snsd_gives_eight_of_the_eleven_classes(corpora):
    _, found = noise_files([corpora / "ms-snsd"])
    assert list(found) == [
        "AirConditioner", "AirportAnnouncements", "Babble", "CopyMachine", "Munching",
        "NeighborSpeaking", "ShuttingDoor", "VacuumCleaner",
    ]  # fmt: skip
    assert all(noise_class(p.stem) == label for label, paths in found.items() for p in paths)
