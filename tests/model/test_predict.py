"""Predictions of a checkpoint for audio files and their segments."""

import numpy as np
import pytest
import soundfile
import torch

from antigram.model.nets.arch import Arch
from antigram.model.training.predict import Unreadable, predict
from antigram.pipeline.errors import InputError
from antigram.pipeline.features.recipe import Recipe
from tests.support.checkpoints import checkpoint_of, sharp
from tests.support.class_recordings import RATE, sound
from tests.support.nets import CPU

ARCH = Arch("vgg11", 2)


def test_predict_says_of_a_file_what_its_stored_features_say(store, corpus):
    checkpoint = sharp(ARCH, store)
    places = [0, 5, 14, 27, 41]
    files = [corpus / store.sources[place].partition("#")[0] for place in places]
    with torch.no_grad():
        x = torch.from_numpy(store.features.read()[places])[:, None]
        want = torch.cat([checkpoint.net()(one[None]).softmax(1) for one in x]).numpy()
    found = list(predict(checkpoint, files, device=CPU))
    assert [p.file for p in found] == [str(file) for file in files]
    for recording, probabilities in zip(found, want, strict=True):
        (one,) = recording.segments
        assert list(one.probabilities) == checkpoint.classes
        np.testing.assert_allclose(list(one.probabilities.values()), probabilities, atol=1e-5)
        assert one.label == checkpoint.classes[int(probabilities.argmax())]
        assert one.start_s == 0
        assert set(one.to_json()) == {"file", "start_s", "label", "probabilities"}
        assert recording.prediction.probabilities == pytest.approx(one.probabilities)
    assert want.std(0).max() > 0.01, "all files look alike to this net"


def test_a_long_file_is_predicted_in_the_windows_it_would_be_stored_in(store, tmp_path, rng):
    y = sound("high", rng, seconds=2.6)
    soundfile.write(tmp_path / "long.wav", y, RATE, subtype="FLOAT")
    soundfile.write(tmp_path / "second.wav", y[RATE : 2 * RATE], RATE, subtype="FLOAT")
    checkpoint = sharp(ARCH, store)
    long, alone = predict(checkpoint, [tmp_path / "long.wav", tmp_path / "second.wav"], device=CPU)
    assert [p.start_s for p in long.segments] == [0, 1, 2]
    second = long.segments[1].probabilities
    assert second == pytest.approx(alone.prediction.probabilities, abs=1e-6)


def test_a_corpus_that_is_cut_gives_one_segment_a_file(store, tmp_path, rng):
    soundfile.write(tmp_path / "long.wav", sound("high", rng, seconds=2.6), RATE)
    checkpoint = sharp(ARCH, store, recipe=Recipe(corpus="gsc", longer="cut"))
    (found,) = predict(checkpoint, [tmp_path / "long.wav"], device=CPU)
    assert found.starts_s == [0]


def test_a_file_that_is_no_audio_is_refused_by_name(store, tmp_path):
    (tmp_path / "text.wav").write_text("hello")
    for name in ("text.wav", "missing.wav"):
        with pytest.raises(InputError, match=name):
            list(predict(checkpoint_of(ARCH, store), [tmp_path / name], device=CPU))


def test_progress_counts_files_that_are_left_out_too(store, tmp_path, rng):
    files = [tmp_path / f"{number}.wav" for number in range(3)]
    for path in files[::2]:
        soundfile.write(path, sound("high", rng), RATE)
    told = []
    found = list(
        predict(
            checkpoint_of(ARCH, store),
            files,
            device=CPU,
            skip_unreadable=True,
            on_progress=lambda *now: told.append(now),
        )
    )
    assert [isinstance(one, Unreadable) for one in found] == [False, True, False]
    assert told == [(stage, n, 3) for stage in ("headers", "recordings") for n in (1, 2, 3)]
