"""Damaged, hostile or odd checkpoints are refused with one line and an exit code."""

import itertools
import json
import pickle
import random
import resource
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from antigram.model.nets.arch import Arch
from antigram.model.training.checkpoint import (
    load_checkpoint,
    load_tensors,
    open_teacher,
    save_tensors,
)
from antigram.pipeline.errors import DamagedError, InputError
from antigram.pipeline.features.recipe import Recipe

ROOT = Path(__file__).resolve().parents[2]
ARCH = Arch("vgg11", 1)


@pytest.fixture
def saved(checkpoint, tmp_path):
    path = tmp_path / "net.pt"
    save_tensors(path, checkpoint.to_plain())
    return path


def problems_of(path):
    from antigram.pipeline.storage.archive import verify_archive

    return [p.problem for p in verify_archive(path)]


def remade(path, name, change):
    """Return an archive with a changed record, a matching checksum and no digest."""
    other = path.with_name("remade.pt")
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(other, "w") as new:
        for info in old.infolist():
            data = old.read(info)
            new.writestr(info.filename, change(data) if info.filename.endswith(name) else data)
    return other


def place_of(path, name):
    """Return the offset of a record's bytes."""
    with zipfile.ZipFile(path) as archive:
        (info,) = [i for i in archive.infolist() if i.filename.endswith(name)]
    raw = path.read_bytes()[info.header_offset :]
    lengths = int.from_bytes(raw[26:28], "little"), int.from_bytes(raw[28:30], "little")
    return info.header_offset + 30 + sum(lengths)


def test_every_flipped_bit_of_a_checkpoint_is_found(saved):
    """Damage weights, headers, padding and digest; `verify` reports the same."""
    raw = saved.read_bytes()
    draw = random.Random(7)
    ends = [*range(40), *range(len(raw) - 110, len(raw))]
    places = [
        *itertools.product(ends, (0, 5)),
        *((draw.randrange(len(raw)), 3) for _ in range(100)),
    ]
    for place, bit in places:
        changed = bytearray(raw)
        changed[place] ^= 1 << bit
        saved.write_bytes(changed)
        with pytest.raises(DamagedError, match=r"net\.pt: damaged: "):
            load_tensors(saved)
        assert problems_of(saved)
    saved.write_bytes(raw)
    assert not problems_of(saved)
    load_checkpoint(saved)


@pytest.mark.parametrize("sealed", [True, False])
def test_a_flipped_bit_in_a_weight_is_refused_and_names_the_record(sealed, saved, checkpoint):
    if not sealed:
        torch.save(checkpoint.state_dict, saved)
    raw = bytearray(saved.read_bytes())
    raw[place_of(saved, "/data/0")] ^= 4
    saved.write_bytes(raw)
    for load in (load_tensors, open_teacher, load_checkpoint):
        with pytest.raises(DamagedError, match=r"net\.pt: damaged: record \w+/data/0: .*CRC"):
            load(saved)
    (problem,) = problems_of(saved)
    assert "data/0" in problem


def test_an_archive_that_was_cut_off_or_lost_its_head_is_damaged(saved):
    raw = saved.read_bytes()
    for part in (*(raw[: int(share * len(raw))] for share in (0.02, 0.5, 0.999)), b"xx" + raw[2:]):
        saved.write_bytes(part)
        with pytest.raises(DamagedError, match=r"net\.pt: damaged"):
            open_teacher(saved)
        assert problems_of(saved)


def test_a_record_exchanged_along_with_its_checksum_is_found_by_the_digest(saved):
    other = remade(saved, "/data/0", lambda data: bytes(len(data)))
    with zipfile.ZipFile(saved) as old, zipfile.ZipFile(other, "a") as new:
        new.comment = old.comment
    with pytest.raises(DamagedError, match="not what its digest was made of"):
        load_tensors(other)
    assert problems_of(other)


def test_a_checkpoint_of_before_digests_and_scores_is_read(checkpoint, tmp_path):
    old = {key: value for key, value in checkpoint.to_plain().items() if key != "scores"}
    torch.save(old, tmp_path / "old.pt")
    found = load_checkpoint(tmp_path / "old.pt")
    assert found.scores == {}
    assert not problems_of(tmp_path / "old.pt")


def test_the_digest_is_made_of_all_bytes_before_it(saved, checkpoint):
    from hashlib import sha256

    raw = saved.read_bytes()
    assert raw[-80:] == b"antigram-sha256:" + sha256(raw[:-80]).hexdigest().encode()
    save_tensors(saved, checkpoint.to_plain())
    assert saved.read_bytes() == raw  # no date in it


class Calls:
    """Pickles as a call of a function that torch.load considers safe."""

    def __init__(self, function, *args):
        self.function, self.args = function, args

    def __reduce__(self):
        return self.function, self.args


@pytest.mark.parametrize(
    "bomb",
    [Calls(bytearray, 256 << 20), Calls(torch.Tensor, 64 << 20)],
    ids=["bytearray", "torch.Tensor"],
)
def test_a_pickle_of_bytes_that_takes_megabytes_is_refused_first(bomb, saved):
    path = remade(saved, "/data.pkl", lambda _: pickle.dumps({"a": bomb}, 2))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(InputError, match=r"remade\.pt: not a checkpoint that can be read safely"):
        open_teacher(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # KB
    assert problems_of(path)


def test_records_that_unpack_to_more_than_is_there_are_refused_before_memory_is_taken(tmp_path):
    path = tmp_path / "bomb.pt"
    torch.save({"features.0.weight": torch.zeros(64, 1, 3, 3)}, tmp_path / "plain.pt")
    with (
        zipfile.ZipFile(tmp_path / "plain.pt") as old,
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as new,
    ):
        for info in old.infolist():
            big = info.filename.endswith("/data/0")
            new.writestr(info.filename, bytes(128 << 20) if big else old.read(info))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(InputError, match="compressed"):
        open_teacher(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # KB


def test_a_directory_that_claims_more_than_the_file_holds_is_refused(saved):
    with zipfile.ZipFile(saved) as archive:
        info = archive.getinfo(archive.namelist()[3])
    huge = (1 << 31).to_bytes(4, "little") * 2
    raw = saved.read_bytes()
    sizes = info.file_size.to_bytes(4, "little") * 2
    start = raw.rindex(info.filename.encode()) - 46
    assert raw[start + 20 : start + 28] == sizes
    saved.write_bytes(raw[: start + 20] + huge + raw[start + 28 :])
    with pytest.raises((InputError, DamagedError), match=r"net\.pt: "):
        load_tensors(saved)
    saved.write_bytes(saved.read_bytes()[:-82] + b"\0\0")  # no digest
    with pytest.raises(InputError, match="claim more bytes than the file has"):
        load_tensors(saved)


ODD = {
    "sparse": lambda t: t.to_sparse(),
    "meta": lambda t: t.to("meta"),
    "complex": lambda t: t.to(torch.complex64),
    "integer": lambda t: t.to(torch.int32),
    "bool": lambda t: t != 0,
    "float8": lambda t: t.to(torch.float8_e4m3fn),
    "quantised": lambda t: torch.quantize_per_tensor(t, 0.1, 0, torch.qint8),
    "negative view": torch._neg_view,
    "text": lambda _: "weights",
    "scalar": lambda t: t.sum(),
    "wider": lambda t: t.repeat(2, 1, 1, 1),
    "too large for float32": lambda t: t.double() * 1e300,
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ODD)
@pytest.mark.parametrize("what", ["checkpoint", "teacher", "state dict"])
def test_odd_weights_are_refused_by_name(kind, what, checkpoint, tmp_path):
    content = checkpoint.to_plain()
    state, name = dict(content["state_dict"]), "features.3.weight"
    state[name] = ODD[kind](state[name])
    plain = what == "state dict"
    torch.save(state if plain else {**content, "state_dict": state}, tmp_path / "odd.pt")
    with pytest.raises(InputError, match=r"odd\.pt: ") as refused:
        (load_checkpoint if what == "checkpoint" else open_teacher)(tmp_path / "odd.pt")
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("plain", [False, True], ids=["checkpoint", "state dict"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_a_teachers_half_and_double_weights_are_converted_and_that_is_said(
    dtype, plain, checkpoint, tmp_path
):
    state = {k: v.to(dtype) for k, v in checkpoint.state_dict.items()}
    content = state if plain else {**checkpoint.to_plain(), "state_dict": state}
    torch.save(content, tmp_path / "half.pt")
    found = open_teacher(tmp_path / "half.pt")
    assert f"its {str(dtype)[6:]} weights were converted to float32" in found.note
    assert list(found.state) == [name for name in state if name.startswith("features.")]
    for name, tensor in found.state.items():
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor, state[name].float())
    assert {t.dtype for t in found.net().state_dict().values()} == {torch.float32}


@pytest.mark.parametrize(
    "field",
    [
        {"classes": ["a", "a", "b"]},
        {"classes": [1, 2, 3]},
        {"classes": ["a", "b", ""]},
        {"classes": "abc"},
        {"classes": []},
        {"task": 5},
        {"task": ""},
        {"std": 1e-310},
        {"std": -1.0},
        {"mean": float("inf")},
        {"arch": {"name": "vgg11", "width": "1"}},
        {"arch": {"name": "vgg11", "width": 10**9}},
        {"arch": {"name": "vgg11", "width": True}},
        {"arch": {"name": "vgg11", "width": 1.0}},
        {"std": 1e300},
        {"std": "1"},
        {"std": True},
        {"mean": 1e300},
        {"mean": 1 << 1100},
        {"mean": "0.5"},
        {"mean": torch.zeros(3)},
        {"format_version": 0},
        {"format_version": True},
        {"scores": [1]},
        {"scores": {"test": 1}},
        {"scores": {"test": {"accuracy": "high"}}},
        {"scores": {"test": {"accuracy": float("nan")}}},
        {"scores": {"test": {"chance": 2}}},
        {"provenance": 3},
        {"state_dict": [1, 2]},
        {"recipe": {"sample_rate": 0}},
        {"recipe": {"sample_rate": "16000"}},
        {"recipe": {"n_fft": 16, "hop": 8}},  # five poolings of 9 bins
        {"recipe": {"seconds": 0.1}},  # and of 14 frames
        {"recipe": {"seconds": 3600, "sample_rate": 768_000, "hop": 1}},  # 1,400 GB
        {"recipe": {"hop": 0}},
        {"recipe": {"hop": -128}},
        {"recipe": {"n_fft": 10**9}},
        {"recipe": {"seconds": float("nan")}},
        {"recipe": {"seconds": "1"}},
        {"recipe": {"seconds": 1e9}},
        {"recipe": {"overlap": 1.0}},
        {"recipe": {"window": "nosuch"}},
        {"recipe": {"window": ("kaiser", 3)}},
        {"recipe": {"options": [1]}},
        {"recipe": {"options": {"a": 1}}},
        {"recipe": {"split": 3}},
        {"recipe": {"longer": "bend"}},
        {"recipe": {"balance": "yes"}},
        {"recipe": {"seed": 0.5}},
    ],
    ids=str,
)
def test_odd_fields_are_one_line(field, checkpoint, tmp_path):
    content = checkpoint.to_plain()
    ((name, value),) = field.items()
    content[name] = {**content["recipe"], **value} if name == "recipe" else value
    torch.save(content, tmp_path / "odd.pt")
    with pytest.raises(InputError, match=r"odd\.pt: ") as refused:
        load_checkpoint(tmp_path / "odd.pt")
    assert "\n" not in str(refused.value)


def test_every_window_that_scipy_names_is_a_recipes(checkpoint):
    from scipy.signal import get_window

    for name in ("boxcar", "hann", "tukey", "flattop"):
        assert get_window(name, 8).size == 8
        assert Recipe(corpus="c", window=name).window == name
    unknown: tuple[Any, ...] = ("", "kaiser", "nosuch", 5)
    for name in unknown:
        with pytest.raises(InputError, match="window is"):
            Recipe(corpus="c", window=name)


def test_a_file_that_cannot_grow_is_what_the_system_said_and_not_torchs_writer(saved, checkpoint):
    """A full disk is reported, although torch's writer hides the error."""
    before = saved.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    for limit in (0, 1000, len(before) // 2, len(before) - 1000, len(before) - 1):
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
        try:
            with pytest.raises(OSError, match="File too large") as full:
                save_tensors(saved, checkpoint.to_plain())
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert full.value.filename == str(saved)
        assert saved.read_bytes() == before
        assert list(saved.parent.iterdir()) == [saved]


def run_cli(*args):
    """Run a command in a process; return exit code, JSON and whether it imported torch."""
    code = (
        "import sys, cli\n"
        f"sys.argv = ['antigram', '--json', *{args!r}]\n"
        "try:\n    cli.main()\nfinally:\n    print('torch' in sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    answer, torch_too = done.stdout.splitlines()
    return done.returncode, json.loads(answer), torch_too == "True"


def test_verify_takes_a_checkpoint_and_does_without_torch(saved):
    path = str(saved)
    answer = {"ok": True, "problems": [], "checked": [path]}
    assert run_cli("verify", path) == (0, answer, False)
    raw = bytearray(saved.read_bytes())
    raw[place_of(saved, "/data/2")] ^= 1
    saved.write_bytes(raw)
    code, answer, torch_too = run_cli("verify", path)
    assert (code, torch_too) == (3, False)
    ((where, problem),) = [tuple(p.values()) for p in answer["problems"]]
    assert where == path
    assert "data/2" in problem


def test_verify_says_that_the_first_format_of_torch_save_has_no_checksums(checkpoint, tmp_path):
    path = tmp_path / "first.pth"
    torch.save(checkpoint.state_dict, path, _use_new_zipfile_serialization=False)
    assert open_teacher(path).arch == ARCH
    with pytest.raises(InputError, match="no checksums"):
        problems_of(path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(DamagedError, match="unexpected EOF"):
        open_teacher(path)


@pytest.mark.slow
def test_a_good_checkpoint_that_does_not_fit_into_memory_is_not_called_damaged(tmp_path):
    torch.save({"features.0.weight": torch.zeros(1 << 29)}, tmp_path / "big.pt")  # 2 GB
    command = (
        f"ulimit -v 5000000; OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 exec "
        f"{sys.executable} cli.py cache-grams --ckpt {tmp_path}/big.pt --layer 1"
    )
    done = subprocess.run(
        ["bash", "-c", command], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2, done.stderr
    assert done.stderr.splitlines()[-1].startswith("antigram: out of memory"), done.stderr
