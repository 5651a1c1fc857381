"""The paper's other corpora, with the traps of their layouts; every count is a hand count."""

import json
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import soundfile

from antigram.pipeline.audio.noise import SNR_LEVELS, NoiseBank, noise_files
from antigram.pipeline.corpora import CORPORA
from antigram.pipeline.corpora.good_sounds import goodness
from antigram.pipeline.corpora.presets import PRESETS, preset_for
from antigram.pipeline.corpus import Clip, CorpusError
from antigram.pipeline.errors import InputError
from antigram.pipeline.features import rendering as render
from antigram.pipeline.features.listing import list_rows
from antigram.pipeline.features.naming import recipe_for
from antigram.pipeline.features.preparation import prepare
from antigram.pipeline.features.split import SPLITS
from tests.pipeline import trees_more
from tests.pipeline.trees import RATE, sound


def listed(name, home, **asked):
    """Rows of a corpus, as the command line asks for them."""
    corpus, recipe = recipe_for(CORPORA[name], asked)
    noise = noise_files([home])[1] if corpus.list_mixtures else None
    home = home / "clean_train" if corpus.list_mixtures else home
    return list_rows(corpus, home, recipe, noise)


def labels_of(listing, label):
    return Counter(dict(row.labels).get(label) for row in listing.rows)


# --- MS-SNSD -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    return trees_more.ms_snsd(tmp_path_factory.mktemp("ms-snsd"))


def test_mixtures_give_exactly_the_hours_asked_for(mixed):
    found = listed("ms-snsd", mixed, hours="0.05")
    assert len(found.rows) == 180
    assert all(row.samples == RATE for row in found.rows)
    mixtures = {row.group: row.mixture for row in found.rows}
    lengths = [mixture.samples / RATE for mixture in mixtures.values()]
    assert all(length >= 10 for length in lengths[:-1])


def test_noise_classes_take_turns_and_misspelt_ones_are_one(mixed):
    found = listed("ms-snsd", mixed, hours="0.2")
    turns = [row.mixture.noise for row in found.rows if row.clip_id.endswith("#00000")]
    classes = ["AirportAnnouncements", "Babble", "Munching", "NeighborSpeaking", "Typing"]
    assert turns[:10] == classes * 2  # and Bus, of one file, is left out
    assert set(labels_of(found, "noise")) == set(classes)


def test_a_mixture_has_one_speaker_and_one_of_the_five_levels(mixed):
    found = listed("ms-snsd", mixed, hours="0.2")
    for row in found.rows:
        names = {path.partition("_")[0] for path, _ in row.mixture.clean}
        assert len(names) == 1
        speaker = dict(row.labels).get("speaker")
        assert speaker == (None if names == {"clnsp7.wav"} else names.pop())
        assert row.mixture.snr_db in SNR_LEVELS["low"]
    assert labels_of(found, "speaker").keys() == {"p225", "p234", None}


def test_the_source_of_a_fragment_is_the_recording_in_which_it_begins(mixed):
    found = listed("ms-snsd", mixed, hours="0.02")
    first = [row for row in found.rows if row.group == found.rows[0].group]
    files = [path for path, _ in first[0].mixture.clean]  # of 3 s each
    assert [row.source(RATE) for row in first[:4]] == [
        f"{files[0]}#0", f"{files[0]}#1", f"{files[0]}#2", f"{files[1]}#0",
    ]  # fmt: skip


def test_a_mixture_has_its_snr_over_its_whole_length(mixed, tmp_path):
    found = listed("ms-snsd", mixed, hours="0.02")
    row = found.rows[0]
    noise = noise_files([mixed])[1]
    bank = NoiseBank.build(noise, RATE, tmp_path / "noise.f32")
    _, recipe = recipe_for(CORPORA["ms-snsd"], {})
    context = render.Context(recipe, mixed / "clean_train", tmp_path, bank)
    render.set_up(context)
    whole = render._mixed(context, row.mixture)[0].astype(np.float64)
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
        CORPORA["ms-snsd"], {"hours": "0.05", "noise_files": NoiseBank.digest_of(noise)}
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
    home = trees_more.ms_snsd(tmp_path / "ms")
    (home / "clean_train" / "p234_002.wav").write_bytes(b"RIFF")
    found = listed("ms-snsd", home, hours="0.01")
    assert [r.source for r in found.rejected] == ["p234_002.wav"]
    assert not any("p234_002" in path for r in found.rows for path, _ in r.mixture.clean)


@pytest.mark.parametrize("hours", ["0", "-1", "many", "nan", "inf"])
def test_hours_without_a_meaning_are_refused(hours):
    with pytest.raises(CorpusError, match="--hours"):
        recipe_for(CORPORA["ms-snsd"], {"hours": hours})


# --- LibriSpeech -------------------------------------------------------------------------------

SPOKEN = [("the", 0.0, 0.5), ("cat", 0.5, 1.0), ("the", 1.2, 1.5), ("dog", 1.5, 2.0)]


def chapter(home, kind, subset="train-clean-100", speaker=19):
    folder = home / subset / str(speaker) / "198"
    folder.mkdir(parents=True, exist_ok=True)
    name = f"{speaker}-198-0000"
    soundfile.write(folder / f"{name}.flac", sound(speaker, 2 * RATE), RATE)
    if kind == "alignment":
        (folder / f"{speaker}-198.alignment.txt").write_text(
            f'{name} "THE,CAT,,THE,DOG," "0.5,1.0,1.2,1.5,2.0,2.0"'
        )
    elif kind == "selected":
        (home / "word_labels").mkdir(exist_ok=True)
        lines = [f"{name} 1 {s:.2f} {e - s:.2f} {w.upper()} 1.00\n" for w, s, e in SPOKEN]
        (home / "word_labels" / f"{subset}-selected-1000.txt").write_text("".join(lines))
    elif kind == "textgrid":
        marks = [*SPOKEN[:2], ("", 1.0, 1.2), *SPOKEN[2:]]
        tier = "".join(
            f"        intervals [{n}]:\n            xmin = {s}\n            xmax = {e}\n"
            f'            text = "{w}"\n'
            for n, (w, s, e) in enumerate(marks, 1)
        )
        (folder / f"{name}.TextGrid").write_text(
            'File type = "ooTextFile"\nObject class = "TextGrid"\n\nxmin = 0\nxmax = 2.0\n'
            "tiers? <exists>\nsize = 1\nitem []:\n    item [1]:\n"
            '        class = "IntervalTier"\n        name = "words"\n        xmin = 0\n'
            f"        xmax = 2.0\n        intervals: size = {len(marks)}\n{tier}"
        )
    return home


@pytest.mark.parametrize("kind", ["alignment", "selected", "textgrid"])
def test_each_kind_of_alignment_gives_the_same_words(kind, tmp_path):
    found = listed("librispeech", chapter(tmp_path, kind))
    got = [(dict(row.labels)["word"], row.start / RATE, row.samples / RATE) for row in found.rows]
    want = [(word, start, end - start) for word, start, end in SPOKEN]
    assert [w for w, _, _ in got] == [w for w, _, _ in want]
    np.testing.assert_allclose([g[1:] for g in got], [w[1:] for w in want], atol=1 / RATE)
    assert {row.group for row in found.rows} == {"19-198-0000"}
    assert labels_of(found, "speaker") == {"19": 4}


def test_the_most_frequent_words_are_kept_and_ties_go_by_name(tmp_path):
    found = listed("librispeech", chapter(tmp_path, "alignment"), words="2")
    assert labels_of(found, "word") == {"the": 2, "cat": 1}
    assert found.skipped == {"word not among the 2 most frequent": 1}


def test_a_word_said_once_does_not_fail(tmp_path):
    home = chapter(tmp_path / "ls", "alignment")
    corpus, recipe = recipe_for(CORPORA["librispeech"], {"words": "3", "seconds": 1.0})
    store = prepare(corpus, home, recipe, tmp_path / "x.zarr").store
    assert store.classes["word"] == ["cat", "dog", "the"]
    assert len(store) == 4


def test_utterances_are_segmented_for_the_speaker_task(tmp_path):
    home = chapter(tmp_path, None)
    found = listed("librispeech", home, unit="utterance", seconds=1.0)
    assert found.label_names == ("speaker",)
    assert [row.start for row in found.rows] == [0, RATE]


def test_subsets_are_the_official_split_and_can_be_chosen(tmp_path):
    for speaker, subset in ((19, "train-clean-100"), (84, "dev-clean"), (61, "test-other")):
        chapter(tmp_path, "alignment", subset, speaker)
    found = listed("librispeech", tmp_path)
    assert {row.official for row in found.rows} == set(SPLITS)
    assert labels_of(listed("librispeech", tmp_path, subset="dev-clean"), "speaker") == {"84": 4}


def test_without_alignments_it_says_what_to_do(tmp_path):
    with pytest.raises(CorpusError, match="--unit utterance"):
        listed("librispeech", chapter(tmp_path, None))


@pytest.mark.parametrize(
    "line", ["19-198-0000 THE CAT", '19-198-0000 ",A," "0.1,x,0.3"', '19-198-0000 ",A," "0.1,0.2"']
)
def test_a_strange_line_of_an_alignment_is_named(line, tmp_path):
    home = chapter(tmp_path, "alignment")
    path = home / "train-clean-100" / "19" / "198" / "19-198.alignment.txt"
    path.write_text(f"\n{line}\n")
    with pytest.raises(CorpusError, match=r"19-198\.alignment\.txt:2"):
        listed("librispeech", home)


# --- NSynth and Good-Sounds --------------------------------------------------------------------


def test_families_may_hold_an_underscore_and_splits_are_the_publishers(tmp_path):
    found = listed("nsynth", trees_more.nsynth(tmp_path))
    assert labels_of(found, "family") == {"bass": 3, "synth_lead": 3}
    assert "synth_lead_synthetic_001" in labels_of(found, "instrument")
    assert labels_of(found, "pitch") == {"60": 6}
    assert Counter(row.official for row in found.rows) == {"train": 2, "validation": 2, "test": 2}


def test_a_note_without_its_file_is_rejected(tmp_path):
    home = trees_more.nsynth(tmp_path)
    table = home / "nsynth-test" / "examples.json"
    notes = json.loads(table.read_text())
    notes["organ_acoustic_000-021-025"] = next(iter(notes.values()))
    table.write_text(json.dumps(notes))
    assert [r.source for r in listed("nsynth", home).rejected] == [
        "nsynth-test/audio/organ_acoustic_000-021-025.wav"
    ]


def test_the_number_of_clips_can_be_limited_in_all_and_drawn_anew(tmp_path):
    home = trees_more.nsynth(tmp_path)
    chosen = [[r.clip_id for r in listed("nsynth", home, limit=3, seed=s).rows] for s in range(6)]
    assert {len(ids) for ids in chosen} == {3}
    assert len({tuple(ids) for ids in chosen}) > 1


@pytest.mark.parametrize(
    ("klass", "label"),
    [
        ("good-sound", "good-sound"),
        ("bad-pitch", "bad-pitch"),
        ("bad-pitch-stability-vibrato", "bad-pitch"),
        ("bad-attack bad-pitch", "bad-pitch"),
        ("bad-dynamics-stability-crescendo", "bad-dynamics"),
        ("bad-timbre", "bad-timbre"),
        ("bad-richness-pato", "bad-timbre"),
        ("bad-attack-gallo", "bad-attack"),
        ("bad-attack bad-timbre", None),
        ("bad-dynamics stable", None),
        ("bad", None),
        ("scale-good", None),
        ("bad-pitch-scale", None),
        ("good-attack-accent>", None),
        ("air-outside", None),
        (None, None),
    ],
)
def test_the_papers_classes_of_goodness(klass, label):
    assert goodness(klass) == label


def test_one_take_a_sound_the_best_microphone_that_is_there(tmp_path):
    home = trees_more.good_sounds(tmp_path)
    found = list(CORPORA["good-sounds"].list_clips(home, {}))
    clips = [f for f in found if isinstance(f, Clip)]
    assert [c.id for c in clips] == [f"{n:06d}" for n in (1, 2, 3, 4, 5)]
    assert [c.path.split("/")[2] for c in clips] == ["akg", "neumann", "iphone", "akg", "neumann"]
    (home / "sound_files/flute_irene/neumann/0002.wav").unlink()
    again = [f for f in CORPORA["good-sounds"].list_clips(home, {}) if isinstance(f, Clip)]
    assert again[1].path.split("/")[2] == "akg"


def test_what_is_normal_in_good_sounds_is_skipped_and_counted(tmp_path):
    found = listed("good-sounds", trees_more.good_sounds(tmp_path))
    assert found.skipped == {
        "scale": 1,
        "sound without klass": 2,
        "take of another microphone": 6,
        "take whose file is absent": 3,
        "take without a sound": 1,
    }
    assert found.rejected == ()


def test_balance_keeps_as_many_of_each_as_of_the_rarest(tmp_path):
    home = trees_more.nsynth(tmp_path)
    table = home / "nsynth-test" / "examples.json"
    notes = json.loads(table.read_text())
    del notes["bass_synthetic_004-060-075"]
    table.write_text(json.dumps(notes))
    assert labels_of(listed("nsynth", home, balance=True), "family") == {"bass": 2, "synth_lead": 2}


def test_a_damaged_database_is_an_error_that_names_it(tmp_path):
    (tmp_path / "database.sqlite").write_bytes(b"SQLite format 3\0" + bytes(100))
    with pytest.raises(CorpusError, match=r"database\.sqlite"):
        listed("good-sounds", tmp_path)


# --- Presets -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_gives_a_recipe_and_what_is_asked_beside_it_wins(name):
    preset = preset_for(name, "paper")
    _, recipe = recipe_for(CORPORA[name], preset)
    for key, value in preset.items():
        found = recipe.options[key] if key in recipe.options else getattr(recipe, key)
        assert found == value
    _, other = recipe_for(CORPORA[name], {**preset, "seed": 5})
    assert other == replace(recipe, seed=5)


def test_an_unknown_preset_is_answered_with_the_known_ones():
    with pytest.raises(InputError, match="gsc has paper"):
        preset_for("gsc", "mine")


def test_with_the_papers_windows_the_last_one_ends_with_the_recording(tmp_path):
    home = chapter(tmp_path, None)
    asked = {"unit": "utterance", "seconds": 0.75, "last_window": "end"}
    found = listed("librispeech", home, **asked)
    assert [row.start for row in found.rows] == [0, 12_000, 20_000]
    assert found.skipped == {}
