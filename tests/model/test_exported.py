"""Exported networks: their probabilities are those of `predict`, from audio and the description."""

import importlib.util
import io
import json
import struct
import sys
from dataclasses import replace

import numpy as np
import pytest
import scipy.signal
import soundfile
import torch

import antigram
from antigram.model.nets.arch import Arch
from antigram.model.nets.networks import build_net
from antigram.model.training.checkpoint import save_tensors
from antigram.model.training.exported import describe, exported_bytes
from antigram.pipeline.errors import InputError
from antigram.pipeline.features.recipe import Recipe
from antigram.studies.export_model import export_model
from tests.support.checkpoints import checkpoint_of, sharp
from tests.support.nets import CPU, VGG11

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning")
MAGNITUDE = Recipe(corpus="folder", longer="segment", overlap=0.5)
LOG_MEL = Recipe(
    corpus="folder", longer="segment", features="log-mel", n_mels=40, n_fft=512, hop=160
)


@pytest.fixture
def saved(store, tmp_path):
    def save(recipe=MAGNITUDE, arch=VGG11):
        mean, std = (store.mean, store.std) if recipe is MAGNITUDE else (-60.0, 20.0)
        checkpoint = sharp(arch, store, recipe=recipe, mean=mean, std=std)
        save_tensors(tmp_path / "net.pt", checkpoint.to_plain())
        return checkpoint, tmp_path / "net.pt"

    return save


def features_of(y, said):
    """Compute the features of 1-D audio from the numbers of a description alone, in float64."""
    audio, spectrum, (_, _, frames, _) = said["audio"], said["features"], said["input"]["shape"]
    samples, n_fft, hop = audio["samples"], spectrum["n_fft"], spectrum["hop"]
    starts = range(0, max(1, len(y) - samples + 1), said["segments"]["hop_samples"])
    window = scipy.signal.get_window(spectrum["window"], n_fft)
    rows = []
    for start in starts:
        segment = y[start : start + samples]
        padded = np.zeros((frames - 1) * hop + n_fft)
        padded[n_fft // 2 : n_fft // 2 + len(segment)] = segment
        cut = [padded[i * hop : i * hop + n_fft] * window for i in range(frames)]
        x = abs(np.fft.rfft(cut)) / window.sum()
        if spectrum["kind"] == "log-mel":
            top = 2595 * np.log10(1 + audio["sample_rate"] / 1400)
            edges = 700 * (10 ** (np.linspace(0, top, spectrum["n_mels"] + 2) / 2595) - 1)
            hz = np.linspace(0, audio["sample_rate"] / 2, n_fft // 2 + 1)
            bands = np.array([np.interp(hz, edges[i : i + 3], [0, 1, 0]) for i in range(40)])
            x = 10 * np.log10(np.maximum(x**2 @ bands.T, 10 ** (spectrum["least_db"] / 10)))
        rows.append(x)
    return np.stack(rows)[:, None].astype(np.float32)


def opened(path, to):
    """Return a function from features to probabilities, without antigram."""
    if to == "torchscript":
        return lambda x: torch.jit.load(path)(torch.from_numpy(x)).numpy()
    for name in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(name, reason=f"{name} is not installed: pip install antigram[export]")
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path))
    return lambda x: session.run(["probabilities"], {"features": x})[0]


@pytest.mark.parametrize("recipe", [MAGNITUDE, LOG_MEL], ids=["magnitude", "log-mel"])
@pytest.mark.parametrize("to", ["torchscript", "onnx"])
def test_probabilities_are_those_of_predict_from_audio_on(to, recipe, saved, rng, tmp_path):
    checkpoint, path = saved(recipe)
    if to == "onnx":
        for name in ("onnx", "onnxscript", "onnxruntime"):
            pytest.importorskip(name, reason=f"{name} is not installed: antigram[export]")
    done = export_model(path, to=to, out=tmp_path / "net.model")
    said = json.loads((tmp_path / "net.model.json").read_text())
    assert said == done.content
    assert (said["classes"], said["input"]["normalised"]) == (checkpoint.classes, False)
    run = opened(tmp_path / "net.model", to)
    for seconds in (0.4, 1.0, 2.5):  # one segment, and several: any number of rows
        y = rng.uniform(-0.5, 0.5, int(seconds * 16_000)) * np.linspace(0, 1, int(seconds * 16_000))
        soundfile.write(tmp_path / "a.wav", y, 16_000, subtype="FLOAT")
        (recording,) = antigram.predict(checkpoint, [tmp_path / "a.wav"], device=CPU)
        want = np.exp(recording.log_probabilities)
        x = features_of(y, said)
        got = run(x)[: len(want)]
        np.testing.assert_allclose(got, want[: len(got)], rtol=0, atol=1e-5)
        assert np.ptp(want) > 0.05


def test_a_torchscript_file_holds_its_description(saved):
    checkpoint, _ = saved()
    said = describe(checkpoint, "torchscript", "net.ts")
    inside = {"antigram": ""}
    data = io.BytesIO(exported_bytes(checkpoint, "torchscript", said))
    torch.jit.load(data, _extra_files=inside)
    assert json.loads(inside["antigram"]) == json.loads(json.dumps(said))


@pytest.mark.parametrize("arch", [VGG11, Arch("resnet18", 2)], ids=str)
def test_safetensors_hold_every_weight(arch, store, tmp_path):
    net = build_net(arch, 3)
    state = net.state_dict()
    checkpoint = replace(checkpoint_of(VGG11, store), arch=arch, state_dict=state)
    said = describe(checkpoint, "safetensors", "net.safetensors")
    data = exported_bytes(checkpoint, "safetensors", said)
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    assert length % 8 == 0
    metadata = header.pop("__metadata__")
    assert json.loads(metadata["antigram"])["network"] == arch.to_json()
    assert set(header) == set(state)
    for name, entry in header.items():
        first, last = entry["data_offsets"]
        kind = {"F32": "<f4", "I64": "<i8"}[entry["dtype"]]
        raw = data[8 + length + first : 8 + length + last]
        got = np.frombuffer(raw, kind).reshape(entry["shape"])
        np.testing.assert_array_equal(got, state[name].numpy())
    assert last == len(data) - 8 - length
    library = pytest.importorskip("safetensors.torch", reason="safetensors is not installed")
    read = library.load(data)
    assert all(torch.equal(read[name], tensor) for name, tensor in state.items())


def test_the_command_writes_both_files_beside_the_checkpoint(saved, shell):
    _, path = saved()
    said = shell.json("export-model", "--ckpt", path, "--to", "safetensors")
    assert said["file"] == str(path.with_suffix(".safetensors"))
    assert said["description"] == f"{said['file']}.json"
    assert said["bytes"] > 1000
    code, out, _ = shell("export-model", "--ckpt", path, "--to", "torchscript", "--out", "x.ts")
    assert code == 0
    assert "features of segment x 1 x 126 x 129 to probabilities of 3 classes" in out
    assert sorted(p.name for p in shell.folder.glob("x.*")) == ["x.ts", "x.ts.json"]


def test_what_cannot_be_exported_is_a_line(saved, shell, monkeypatch):
    _, path = saved()
    words = ("export-model", "--ckpt", path, "--to")
    line = f"--out {path}: is the checkpoint itself"
    shell.refused(2, line, *words, "safetensors", "--out", path)
    shell.refused(2, "there is no folder", *words, "safetensors", "--out", "no/where.ts")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    line = "--to onnx needs onnx and onnxscript: pip install 'antigram[export]'"
    shell.refused(2, line, *words, "onnx")
    assert not path.with_suffix(".onnx").exists()


def test_a_network_that_the_format_cannot_hold_is_refused(saved, monkeypatch):
    checkpoint, _ = saved()
    said = describe(checkpoint, "torchscript", "net.ts")

    def traced(net, _):
        constant = net(torch.rand(1, 1, 126, 129))
        return torch.jit.script(Constant(constant))

    monkeypatch.setattr(torch.jit, "trace", traced)
    with pytest.raises(InputError, match=r"probabilities differ by .*, wanted at most 1e-05"):
        exported_bytes(checkpoint, "torchscript", said)


class Constant(torch.nn.Module):
    def __init__(self, value):
        super().__init__()
        self.register_buffer("value", value)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.value.expand(x.shape[0], -1)


def test_without_onnxruntime_it_is_said_that_nothing_was_tried(saved, monkeypatch):
    pytest.importorskip("onnxscript", reason="onnxscript is not installed")
    checkpoint, _ = saved()
    found = importlib.util.find_spec
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda n: None if n == "onnxruntime" else found(n)
    )
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    said = []
    exported_bytes(checkpoint, "onnx", describe(checkpoint, "onnx", "n"), said.append)
    assert said == ["not tried, as onnxruntime is not installed"]
