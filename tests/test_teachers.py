"""Teachers that antigram did not train: users' files and other projects' networks."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path

import pytest
import torch
import torchaudio
from torch import nn

from antigram.cache.grams import GramCache
from antigram.cache.key import CacheKey
from antigram.cache.layer import CacheLayer
from antigram.model.nets.arch import Arch
from antigram.model.nets.external import external_arch, external_net, module_digest
from antigram.model.nets.hooks import watch
from antigram.model.nets.pretrained import PRETRAINED, Crepe, Resemblyzer, SileroVad, Transformer
from antigram.pipeline.errors import InputError
from antigram.pipeline.features.segment_audio import SegmentAudio
from antigram.pipeline.features.store import FeatureStore
from tests.support.files import flip
from tests.support.workspaces import TINY

CODE = """
import torch
from torch import nn


class Hearing(nn.Module):
    sample_rate = 8_000
    layers = ["conv"]

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv1d(1, 5, 64, stride=32)

    def forward(self, x):
        return self.conv(x[:, None])


def hearing():
    torch.manual_seed(1)
    return Hearing()


def seeing():
    torch.manual_seed(2)
    return nn.Sequential(nn.Conv2d(1, 6, 5, 4), nn.ReLU(), nn.Conv2d(6, 4, 3))


def random():
    return nn.Sequential(nn.Conv2d(1, 4, 5, 4))


def needs(classes):
    return nn.Identity()


def nothing():
    return 3


def slow():
    raise ValueError("not today")


def at_no_rate():
    net = nn.Identity()
    net.sample_rate = "fast"
    return net


def too_wide():
    return nn.Sequential(nn.Flatten(), nn.Linear(7, 3))
"""
PAIRWISE = ("--aggregation", "pairwise", "--dtype", "float32")


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(CODE)
    return path


@pytest.fixture
def store(shell, audio):
    shell.json("prepare", "folder", "--source", audio, "--name", "tones", "--workers", "1")
    return FeatureStore("workspace/features/tones.zarr")


def module(file: Path, name: str) -> nn.Module:
    return external_net(f"{file}:{name}")


def maps_of(net: nn.Module, name: str, x: torch.Tensor) -> torch.Tensor:
    found: list[torch.Tensor] = []
    with torch.no_grad(), watch(net, [name], lambda _, maps: found.append(maps)):
        net(x)
    return found[0]


def test_rows_of_a_teacher_of_features_are_those_of_its_maps(shell, store, file):
    name = f"{file}:seeing"
    built = shell.json("cache-grams", "--teacher", name, "--layer", "2", "--dtype", "float32")
    assert built["name"] == "tones--mine-seeing"
    maps = maps_of(module(file, "seeing"), "2", torch.from_numpy(store.features.read())[:, None])
    flat = maps.flatten(2)
    gram = (flat @ flat.mT).flatten(1)
    rows = GramCache(built["cache"], store).rows("2", store.clip_ids)
    want = gram / gram.norm(dim=1, keepdim=True)
    torch.testing.assert_close(rows.matrices(4).flatten(1), want, rtol=0, atol=1e-5)
    again = shell.json("cache-grams", "--teacher", name, "--layer", "2", "--dtype", "float32")
    assert again["computed"] == 0


def test_the_chain_with_a_teacher_of_audio(shell, store, file, audio):
    name = f"{file}:hearing"
    cache = ["cache-grams", "--teacher", name, *PAIRWISE, "--name", "heard"]
    built = shell.json(*cache, "--grid", "7", "1")
    assert built["layers"]["conv"]["positions"] == 7
    key = CacheLayer(Path(built["cache"]), "conv").key
    assert key.arch == Arch("teacher:mine.py:hearing", source=external_arch(name).source)
    assert CacheKey.from_json(key.to_json()) == key
    assert shell.json("verify", "heard", "--recompute", "3", "--teacher", name)["ok"]
    moved = shutil.copytree(audio, shell.folder / "moved")
    at = ["--source", str(moved)]
    assert shell.json("verify", "heard", "--recompute", "3", "--teacher", name, *at)["ok"]
    train = ["train", "--mode", "cached", "--cache", "heard", "--max-steps", "2", "--no-report"]
    result = shell.json(*train, *TINY, "--layer", "4=conv")
    assert (result["layers"], list(result["at_initial"])) == ([4], ["4"])
    assert 0 < result["at_initial"]["4"]["heard"] < 1


def test_audio_is_resampled_to_the_rate_of_the_teacher(shell, store, file):
    built = shell.json("cache-grams", "--teacher", f"{file}:hearing", "--name", "heard")
    layer = CacheLayer(Path(built["cache"]), "conv")
    assert (layer.channels, layer.positions) == (5, (8_000 - 64) // 32 + 1)


def test_recompute_notices_another_teacher_and_other_rows(shell, store, file, monkeypatch):
    name = f"{file}:hearing"
    shell.json("cache-grams", "--teacher", name, *PAIRWISE, "--name", "heard")
    check = ["verify", "heard", "--recompute", "4", "--teacher"]
    shell.refused(2, "was made from another teacher", *check, f"{file}:seeing")
    resampled = SegmentAudio._resampled
    monkeypatch.setattr(SegmentAudio, "_resampled", lambda self, y: resampled(self, y[::-1] ** 2))
    code, out, _ = shell("--json", *check, name)
    assert code == 3
    assert "differs from the teacher's by" in out


def test_the_code_and_the_weights_of_a_teacher_are_in_the_key(shell, store, file):
    cache = ["cache-grams", "--teacher", f"{file}:seeing", "--layer", "2", "--name", "x"]
    first = shell.json(*cache)["layers"]["2"]["fingerprint"]
    file.write_text(CODE.replace("manual_seed(2)", "manual_seed(3)"))
    weights = shell.json(*cache)
    assert weights["computed"] == len(store)
    file.write_text(CODE + "\n# another version\n")
    code = shell.json(*cache)
    assert code["computed"] == len(store)
    assert len({first, *(b["layers"]["2"]["fingerprint"] for b in (weights, code))}) == 3


def test_an_edited_recording_is_refused(shell, tmp_path, audio, file):
    home = shutil.copytree(audio, tmp_path / "mine")
    shell.json("prepare", "folder", "--source", home, "--name", "tones", "--workers", "1")
    edited = sorted(home.rglob("*.wav"))[0]
    flip(edited, edited.stat().st_size - 2)
    cache = ["cache-grams", "--teacher", f"{file}:hearing"]
    shell.refused(2, "1 recordings are not as they were when tones was prepared", *cache)
    shutil.rmtree(home)
    shell.refused(2, "the audio that it was made of is needed", *cache)
    assert shell.json(*cache, "--source", audio)["computed"]


def test_gram_needs_equal_channels_and_says_what_does_not(shell, store, file):
    shell.json("cache-grams", "--teacher", f"{file}:seeing", "--layer", "2", "--name", "x")
    shell.refused(
        2,
        "the teacher mine.py:seeing at 2 4 x 870; --aggregation gram needs equal numbers of "
        "channels. Build the cache with --aggregation pairwise, which needs neither",
        "train", "--mode", "cached", "--cache", "x", "--layer", "3=2", "--arch", "vgg11",
        "--width", "8",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("wanted", "options"),
    [
        ("give one of the two", []),
        ("wanted silero-vad, torchcrepe", ["--teacher", "siri"]),
        ("cannot read gone.py", ["--teacher", "gone.py:f"]),
        ("has no function absent; it has hearing", ["--teacher", "{file}:absent"]),
        ("has the parameter classes; it is called without", ["--teacher", "{file}:needs"]),
        ("returned int; wanted a module", ["--teacher", "{file}:nothing"]),
        ("failed: ValueError: not today", ["--teacher", "{file}:slow"]),
        ("its sample_rate is 'fast'", ["--teacher", "{file}:at_no_rate"]),
        ("does not say which; name modules", ["--teacher", "{file}:seeing"]),
        ("has no module of this name", ["--teacher", "{file}:seeing", "--layer", "9"]),
        ("cannot take (2, 1, ", ["--teacher", "{file}:too_wide", "--layer", "1"]),
        ("takes the stored features, and no", ["--teacher", "{file}:seeing", "--source", "."]),
        ("hearing takes audio; leave it out", ["--teacher", "{file}:hearing", "--views", "2"]),
        ("--teacher-control permuted", ["--teacher", "{file}:hearing", "--teacher-control",
                                        "permuted"]),
        ("--grid: goes with", ["--teacher", "{file}:hearing", "--grid", "2", "1"]),
    ],
    ids=lambda value: "" if isinstance(value, str) else "-".join(value[1:]).replace("{file}:", ""),
)  # fmt: skip
def test_what_is_wrong_with_a_teacher_costs_one_line(shell, store, file, wanted, options):
    given = [option.format(file=file) for option in options]
    shell.refused(2, wanted, "cache-grams", *given)


def test_a_missing_package_is_named_with_its_extra(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    for name, about in PRETRAINED.items():
        if about.extra:
            wanted = rf"{name}: .* not installed: pip install antigram\[{about.extra}\]"
            with pytest.raises(InputError, match=wanted):
                external_net(name)


def test_every_extra_is_declared():
    declared = (Path(__file__).parents[1] / "pyproject.toml").read_text()
    for about in PRETRAINED.values():
        assert not about.extra or f"\n{about.extra} = [" in declared


TINY_WAV2VEC2 = {
    "extractor_mode": "group_norm",
    "extractor_conv_layer_config": [(8, 10, 5), (8, 3, 2)],
    "extractor_conv_bias": False,
    "encoder_embed_dim": 12,
    "encoder_projection_dropout": 0.0,
    "encoder_pos_conv_kernel": 4,
    "encoder_pos_conv_groups": 2,
    "encoder_num_layers": 2,
    "encoder_num_heads": 2,
    "encoder_attention_dropout": 0.0,
    "encoder_ff_interm_features": 16,
    "encoder_ff_interm_dropout": 0.0,
    "encoder_dropout": 0.0,
    "encoder_layer_norm_first": False,
    "encoder_layer_drop": 0.0,
    "aux_num_out": None,
}


def tiny_transformer() -> Transformer:
    return Transformer(torchaudio.models.wav2vec2_model(**TINY_WAV2VEC2))


@pytest.mark.parametrize(
    ("build", "channels"),
    [
        (SileroVad, (128, 64, 64, 128, 128)),
        (lambda: Crepe(1 / 8), (128, 16, 16, 16, 32, 64)),
        (Resemblyzer, (256, 256, 256)),
        (tiny_transformer, (12, 12)),
    ],
    ids=["silero-vad", "torchcrepe-tiny", "resemblyzer", "wav2vec2"],
)
def test_a_network_has_maps_over_time_that_do_not_depend_on_other_segments(build, channels):
    torch.manual_seed(0)
    net = build().eval()
    x = 0.1 * torch.randn(2, 8_000)
    for name, count in zip(net.layers, channels, strict=True):
        maps = maps_of(net, name, x)
        assert maps.shape[:2] == (2, count)
        assert maps.shape[2] >= 16  # half a second
        alone = maps_of(net, name, x[1:])
        torch.testing.assert_close(maps[1:], alone, rtol=1e-4, atol=1e-5)
        later = x.clone()
        later[:, -1_500:] = 0.1
        changed = (maps_of(net, name, later) - maps).abs().amax((0, 1, 3)) > 1e-4
        assert changed[-2:].all()  # the last positions are those of the last samples


def test_the_transformer_computes_what_torchaudios_model_computes():
    torch.manual_seed(0)
    model = torchaudio.models.wav2vec2_model(**TINY_WAV2VEC2).eval()
    x = torch.randn(2, 4_000)
    net = Transformer(model).eval()
    with torch.no_grad():
        wanted = model.extract_features(x)[0]
    for number, each in enumerate(wanted, 1):
        torch.testing.assert_close(maps_of(net, str(number), x)[..., 0].mT, each)


def test_the_digest_of_weights_is_that_of_their_bytes():
    one, two = nn.Conv1d(1, 2, 3), nn.Conv1d(1, 2, 3)
    assert module_digest(one) != module_digest(two)
    two.load_state_dict(one.state_dict())
    assert module_digest(one) == module_digest(two)
    with torch.no_grad():
        two.bias[0] = torch.nextafter(two.bias[0], torch.tensor(9.0))
    assert module_digest(one) != module_digest(two)


def test_silence_has_finite_maps():
    for net in (SileroVad(), Crepe(1 / 8), Resemblyzer()):
        for name in net.layers:
            assert torch.isfinite(maps_of(net.eval(), name, torch.zeros(1, 8_000))).all()


@pytest.mark.skipif(importlib.util.find_spec("silero_vad") is None, reason="not installed")
def test_silero_vad_computes_what_its_own_model_computes():
    net = external_net("silero-vad")
    folder = Path(importlib.util.find_spec("silero_vad").submodule_search_locations[0])
    with pytest.warns(FutureWarning):
        own = torch.jit.load(folder / "data" / "silero_vad.jit")
    x = 0.1 * torch.randn(2, 16_000, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(net(x), own.audio_forward(x, 16_000), rtol=0, atol=1e-5)
