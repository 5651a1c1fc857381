"""Grad-CAM against hooks and loops; where it is drawn; and what it says of a recording."""

import numpy as np
import pytest
import soundfile
import torch

from antigram.model.nets.arch import Arch
from antigram.model.nets.grad_cam import grad_cam, on_input
from antigram.model.nets.vgg import Vgg
from antigram.model.training.explain import explain
from antigram.model.training.predict import predict
from antigram.pipeline.audio.stft import stft
from antigram.pipeline.errors import InputError
from antigram.pipeline.features.recipe import Recipe
from tests.support.checkpoints import sharp
from tests.support.class_recordings import RATE, sound
from tests.support.nets import CPU

ARCH = Arch("vgg11", 2)
CONVOLUTIONS = {1: 0, 2: 3, 5: 11, 8: 18}  # of VGG11: index in features; its ReLU is the next


@pytest.fixture
def net():
    """A network whose biases are not zero, so that one that is left out would show."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        found = Vgg(ARCH, 4).eval()
        for name, tensor in found.state_dict().items():
            if name.endswith("bias"):
                tensor.uniform_(-0.05, 0.05)
            elif name.startswith("classifier"):
                tensor.mul_(30)
    return found


def by_hooks(net, x, layer, target):
    """Grad-CAM of each segment alone, in float64: maps and gradients from hooks, then loops."""
    wide = Vgg(net.arch, 4).double().eval()
    wide.load_state_dict(net.state_dict())
    wide.set_tap("conv")  # its ReLUs make copies, which hooks may keep
    kept = {}
    relu = wide.features[CONVOLUTIONS[layer] + 1]
    relu.register_forward_hook(lambda _module, _given, out: kept.update(maps=out))
    relu.register_full_backward_hook(lambda _module, _given, out: kept.update(gradient=out[0]))
    found = []
    for segment in x.double():
        wide(segment[None])[0, target].backward()
        maps, gradient = kept["maps"][0].detach().numpy(), kept["gradient"][0].numpy()
        total = np.zeros(maps.shape[1:])
        for channel, of_score in zip(maps, gradient, strict=True):
            total += of_score.mean() * channel
        found.append(np.maximum(total, 0))
    return np.array(found)


@pytest.mark.parametrize("target", [0, 3])
@pytest.mark.parametrize("layer", CONVOLUTIONS)
def test_grad_cam_is_that_of_hooks_and_loops(net, rng, layer, target):
    x = torch.from_numpy(rng.standard_normal((3, 1, 70, 65), dtype=np.float32))
    net.requires_grad_(requires_grad=False)
    with torch.no_grad():
        want_logits = net(x)
        found, logits = grad_cam(net, x, layer, target)
    want = by_hooks(net, x, layer, target)
    assert want.max() > 0
    np.testing.assert_allclose(found.numpy(), want, rtol=0, atol=2e-5 * want.max())  # seen: 2e-6
    torch.testing.assert_close(logits, want_logits)
    assert not found.requires_grad
    assert x.grad is None


@pytest.mark.parametrize("layer", [1, 2, 5, 8])
def test_the_stride_of_a_layer_is_the_step_of_what_its_positions_see(net, layer):
    """Move an impulse by the stride: the maps move by one position, away from the border."""
    stride, _ = net.strides(layer)
    maps = []
    for at in (224, 224 + stride):
        x = torch.zeros(1, 1, 448, 64)
        x[0, 0, at, 32] = 10
        net.run_features(x, [layer], "relu", lambda _layer, found: maps.append(found), stop=True)
    positions = maps[0].shape[2]
    inner = np.arange(positions // 4, positions * 3 // 4)
    torch.testing.assert_close(maps[1][:, :, inner + 1], maps[0][:, :, inner])
    assert maps[0][:, :, inner].std(2).max() > 0


def test_a_position_is_drawn_where_its_receptive_field_is_centred():
    maps = torch.zeros(1, 7, 8)
    maps[0, 2, 5] = 1
    large = on_input(maps, (126, 129), 16)[0].numpy()
    assert large.shape == (126, 129)
    frames, bins = np.nonzero(large == large.max())
    assert (frames.mean(), bins.mean()) == (2.5 * 16 - 0.5, 5.5 * 16 - 0.5)
    ramp = torch.arange(7.0)[None, :, None].expand(1, 7, 8)
    want = np.clip((np.arange(126) + 0.5) / 16 - 0.5, 0, 6)
    np.testing.assert_allclose(on_input(ramp, (126, 129), 16)[0, :, 64].numpy(), want, atol=1e-5)
    same = torch.rand(2, 5, 6)
    torch.testing.assert_close(on_input(same, (5, 6), 1), same)


def test_an_explanation_has_what_predict_says_and_the_spectrogram_of_the_segments(store, corpus):
    checkpoint = sharp(ARCH, store)
    path = corpus / "high" / "03.wav"
    found = explain(checkpoint, path, device=CPU)
    (wanted,) = predict(checkpoint, [path], device=CPU)
    assert found.prediction.probabilities == pytest.approx(wanted.prediction.probabilities)
    assert found.label == wanted.prediction.label
    assert found.layer == 8
    y, _ = soundfile.read(path, dtype="float32")
    want = stft(y, n_fft=256, hop=128, window="hamming")
    np.testing.assert_allclose(found.magnitudes, want, rtol=0, atol=4e-7 * 10)
    x = torch.from_numpy(store.features.take([store.sources.index("high/03.wav#0")]))[:, None]
    maps, _ = grad_cam(checkpoint.net(), x, 8, checkpoint.classes.index(found.label))
    np.testing.assert_allclose(found.heat, on_input(maps, (126, 129), 16)[0], atol=1e-5)
    assert found.maximum == pytest.approx(float(maps.max()), rel=1e-4)
    frame, freq = np.unravel_index(int(maps[0].argmax()), maps.shape[1:])
    centre = [float(16 * frame + 7.5) * 0.008, float(16 * freq + 7.5) * 62.5]
    np.testing.assert_allclose((found.peak or ())[:2], centre)


def test_segments_of_a_long_recording_are_joined_at_their_times(store, tmp_path, rng):
    checkpoint = sharp(ARCH, store)
    y = sound("high", rng, seconds=3)
    y[:RATE] = y[2 * RATE :] = 0  # only the second second is heard
    soundfile.write(tmp_path / "long.wav", y, RATE, subtype="FLOAT")
    found = explain(checkpoint, tmp_path / "long.wav", layer=1, label="high", device=CPU)
    assert found.heat.shape == found.magnitudes.shape == (376, 129)
    loud = np.flatnonzero(found.magnitudes.max(1) > 0.001) * found.frame_s
    assert (loud.min(), loud.max()) == (pytest.approx(1, abs=0.01), pytest.approx(2, abs=0.01))
    # Segments begin at every 80th frame.
    overlapping = sharp(ARCH, store, recipe=Recipe(corpus="folder", longer="segment", overlap=0.36))
    again = explain(overlapping, tmp_path / "long.wav", layer=1, label="high", device=CPU)
    assert again.magnitudes.shape == (3 * 80 + 126, 129)
    # Segments that overlap agree on their magnitudes, but for their first and last frame.
    inner = np.r_[2:78, 84:120, 130:158, 164:200]
    np.testing.assert_allclose(again.magnitudes[inner], found.magnitudes[inner], atol=1e-6)


def test_a_class_for_which_nothing_speaks_has_no_peak(store, corpus):
    checkpoint = sharp(ARCH, store)
    checkpoint.state_dict["classifier.6.weight"][checkpoint.classes.index("low")] = 0
    found = explain(checkpoint, corpus / "high" / "03.wav", label="low", device=CPU)
    assert (found.peak, found.maximum) == (None, 0)
    assert found.to_json()["maximum_at"] == {"seconds": None, "hz": None}


@pytest.mark.parametrize(
    ("asked", "match"),
    [
        ({"layer": 9}, "`layers` 9: vgg11 has convolution layers 1 to 8"),
        ({"label": "dog"}, "class 'dog' is not known: the checkpoint tells label apart, high, low"),
    ],
)
def test_what_a_network_has_not_is_refused(store, corpus, asked, match):
    with pytest.raises(InputError, match=match):
        explain(sharp(ARCH, store), corpus / "high" / "03.wav", device=CPU, **asked)


def test_recordings_that_cannot_be_shown_are_refused(store, tmp_path, rng):
    checkpoint = sharp(ARCH, store)
    (tmp_path / "text.wav").write_text("hello")
    soundfile.write(tmp_path / "long.wav", np.zeros(121 * RATE, np.float32), RATE)
    with pytest.raises(InputError, match=r"text\.wav: .*\. Repair it, or name another file\."):
        explain(checkpoint, tmp_path / "text.wav", device=CPU)
    with pytest.raises(InputError, match=r"long\.wav: lasts 121 s; wanted at most 120 s"):
        explain(checkpoint, tmp_path / "long.wav", device=CPU)
    cut = sharp(ARCH, store, recipe=Recipe(corpus="gsc", longer="cut"))
    assert explain(cut, tmp_path / "long.wav", device=CPU).heat.shape == (126, 129)
    cut.state_dict["classifier.6.bias"][:] = float("inf")
    with pytest.raises(InputError, match="outputs are not finite"):
        explain(cut, tmp_path / "long.wav", device=CPU)
