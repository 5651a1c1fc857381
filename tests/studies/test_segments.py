"""Parts of a run's report that show single segments, with and without their recordings."""

import base64
import io
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile

from antigram.model.nets.arch import Arch
from antigram.model.training.checkpoint import save_tensors
from antigram.pipeline.features.folds import make_teacher_view
from antigram.pipeline.features.store import FeatureStore
from antigram.pipeline.workspace import Workspace
from antigram.studies.report import segments
from antigram.studies.report.page import Figure, Sounds
from antigram.studies.report.recordings import Recordings, wav_bytes
from antigram.studies.report.segments import segment_parts
from tests.support import corpus_trees
from tests.support.checkpoints import checkpoint_of, log_probabilities_of, sharp
from tests.support.class_recordings import write_corpus
from tests.support.nets import CPU
from tests.support.report_pages import Page
from tests.support.stores import make_store, prepare_gsc

ARCH = Arch("vgg11", 2)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("segments")
    home = write_corpus(folder / "corpus")
    return home, make_store(home, folder / "features" / "tiny.zarr").path


@pytest.fixture
def home(made, tmp_path):
    return Path(shutil.copytree(made[0], tmp_path / "corpus"))


@pytest.fixture
def store(made, home, tmp_path):
    """A store whose recordings may be deleted."""
    target = tmp_path / "features" / "tiny.zarr"
    return make_store(home, target)


@pytest.fixture
def workspace(tmp_path, monkeypatch):
    monkeypatch.delenv("ANTIGRAM_CORPORA", raising=False)
    return Workspace(tmp_path)


@pytest.fixture
def run(store, tmp_path):
    """A run whose best weights are drawn, so that they are often wrong."""
    folder = tmp_path / "run"
    folder.mkdir()
    save_tensors(folder / "best.pt", sharp(ARCH, store).to_plain())
    return folder


def parts_of(run, store, workspace):
    return segment_parts(run, store, "label", workspace, device=CPU)


def test_errors_are_those_that_the_network_is_surest_of_and_are_heard(run, store, workspace, home):
    sounds, preparation, components = parts_of(run, store, workspace)
    assert isinstance(sounds, Sounds)
    log_p = log_probabilities_of(sharp(ARCH, store), store)
    rows, labels = store.rows("test", "label"), store.labels("label")
    wrong = [row for row in rows if log_p[row].argmax() != labels[row]]
    assert len(wrong) > 1
    surest = sorted(wrong, key=lambda row: -log_p[row].max())[:5]
    names = store.classes["label"]
    assert sounds.text.startswith(
        f"{len(wrong)} of {len(rows)} segments of the test split are predicted wrongly"
    )
    for row, sound in zip(surest, sounds.sounds, strict=True):
        path = store.sources[row].partition("#")[0]
        said = names[int(log_p[row].argmax())]
        assert sound.text == (
            f"label {names[labels[row]]}, predicted as {said} "
            f"({np.exp(log_p[row].max()):.1%}): {path} from 0 s"
        )
        heard, rate = soundfile.read(io.BytesIO(sound.wav), dtype="float32")
        want, _ = soundfile.read(home / path, dtype="float32")
        assert rate == 16_000
        np.testing.assert_allclose(heard, want.clip(-1, 1), atol=1 / 32767)
    assert isinstance(preparation, Figure)
    assert preparation.caption.endswith(
        f"before and after preparation: {store.clip_ids[surest[0]]}."
    )
    assert [picture.alt for picture in preparation.rows[0]] == [
        "Spectrogram (dB below the maximum): as recorded: STFT magnitude",
        "Spectrogram (standard deviations from the mean): as stored: normalised",
    ]
    assert isinstance(components, Figure)
    assert len(components.rows[0]) == 1  # the store has one label
    assert f"of {len(rows)} segments of the test split" in components.caption


def test_recordings_that_are_gone_or_were_edited_are_named_but_not_heard(
    run, store, workspace, home
):
    first = parts_of(run, store, workspace)[0]
    path = home / first.sounds[0].text.partition("): ")[2].partition(" from")[0]
    y, rate = soundfile.read(path, dtype="float32")
    soundfile.write(path, y[::-1], rate, subtype="FLOAT")
    os.utime(path, (1e9, 1e9))
    edited = parts_of(run, store, workspace)[0]
    assert [sound.text for sound in edited.sounds] == [sound.text for sound in first.sounds]
    assert [bool(sound.wav) for sound in edited.sounds] == [
        False,
        *[True] * (len(first.sounds) - 1),
    ]
    assert "missing or were edited since" in edited.text
    shutil.rmtree(home)
    gone, preparation, _ = parts_of(run, store, workspace)
    assert "Their recordings are no longer where the store was made from." in gone.text
    assert not any(sound.wav for sound in gone.sounds)
    assert "Its recording is not found" in preparation.caption
    assert len(preparation.rows[0]) == 1


def test_a_corpus_that_was_moved_is_found_where_corpora_are_looked_for(store, workspace, home):
    row = store.sources.index("high/03.wav#0")
    want = Recordings(store, workspace).samples(row)
    (workspace.corpora).mkdir()
    moved = home.rename(workspace.corpora / "folder")
    found = Recordings(store, workspace)
    assert found.home == moved
    np.testing.assert_array_equal(found.samples(row), want)
    fold = FeatureStore(make_teacher_view(store, "label", seed=0))
    assert fold.base is not None
    np.testing.assert_array_equal(Recordings(fold, workspace).samples(row), want)


def test_zeros_that_fill_a_segment_are_not_heard(workspace, tmp_path, write_wav, rng):
    home = tmp_path / "short"
    y = rng.uniform(-0.5, 0.5, 6000).astype(np.float32)
    for number in range(6):
        write_wav(home / "a" / f"{number}.wav", np.pad(y[: 3000 + 500 * number], (0, 5000)))
    store = make_store(home, tmp_path / "short.zarr", longer="cut", dtype="float16")
    found = Recordings(store, workspace)
    for row, source in enumerate(store.sources):
        length = 3000 + 500 * int(Path(source).stem)
        samples = found.samples(row)
        assert samples is not None
        assert length <= samples.size <= length + 256
        np.testing.assert_allclose(samples[:length], y[:length], atol=1 / 32767)


def test_with_noise_the_recording_is_heard_and_the_page_says_so(workspace, tmp_path):
    corpus_trees.gsc(tmp_path / "gsc", per_word=20)
    corpus_trees.noise(tmp_path / "noise")
    noisy, noise = tmp_path / "noisy.zarr", tmp_path / "noise"
    store = prepare_gsc(tmp_path / "gsc", noisy, noise_home=noise).store
    run = tmp_path / "run"
    run.mkdir()
    checkpoint = checkpoint_of(ARCH, store, classes=store.classes["word"])
    save_tensors(run / "best.pt", checkpoint.to_plain())
    sounds, preparation, components = segment_parts(run, store, "word", workspace, device=CPU)
    assert isinstance(sounds, Sounds)
    assert sounds.text.endswith("without the noise that the store has.")
    assert isinstance(preparation, Figure)
    row = store.clip_ids.index(preparation.caption.partition(": ")[2].removesuffix("."))
    snr_db = store.snr_db[row]
    said = "silent and without noise" if np.isnan(snr_db) else f"noise at {snr_db:g} dB SNR"
    assert preparation.rows[0][1].alt.endswith(f"normalised, {said}")
    assert isinstance(components, Figure)
    assert [picture.alt[-14:] for picture in components.rows[0]] == [
        "marked by word",
        "ked by speaker",
    ]


def test_a_network_without_errors_has_none_to_hear(run, store, workspace, monkeypatch):
    predicted = segments.predict_segments(run / "best.pt", store, "label", CPU)
    right = predicted._replace(true=predicted.shares.argmax(1).astype(np.int32))
    monkeypatch.setattr(segments, "predict_segments", lambda *_: right)
    sounds, *_ = parts_of(run, store, workspace)
    count = len(store.rows("test", "label"))
    assert sounds.text == f"None of {count} segments of the test split is predicted wrongly."
    assert sounds.sounds == ()


def test_nothing_fails_without_weights(run, store, workspace):
    (run / "best.pt").unlink()
    (said,) = parts_of(run, store, workspace)
    assert "Segments cannot be shown: " in said.text
    assert "best.pt" in said.text


def test_clipping_is_not_wrapped():
    heard, rate = soundfile.read(io.BytesIO(wav_bytes(np.array([2, -2, 0.5], np.float32), 8000)))
    assert rate == 8000
    np.testing.assert_allclose(heard, [1, -1, 0.5], atol=1e-4)


def test_the_report_of_a_training_has_them(chain, audio):
    text = Path("workspace/runs/baseline-tones-seed0/report.html").read_text()
    page = Page(text)
    assert page.tags.count("img") == 2 + 2 + 1  # curves, preparation, one label
    assert any(said.startswith("Errors to listen to") for said in page.texts)
    sounds = text.split('src="data:audio/wav;base64,')[1:]
    assert len(sounds) == page.tags.count("audio") > 0
    names = [said for said in page.texts if said.startswith("label ") and "predicted as" in said]
    for sound, name in zip(sounds, names, strict=True):
        heard, _ = soundfile.read(io.BytesIO(base64.b64decode(sound.partition('"')[0])))
        want, _ = soundfile.read(audio / name.partition("): ")[2].partition(" from")[0])
        np.testing.assert_allclose(heard, want, atol=1e-4)
