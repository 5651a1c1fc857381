"""Measure how fast `prepare` is on real recordings, compared with librosa and lhotse.

``python -m benchmarks.prepare --source FSDD --noise-source MS-SNSD [--clips 3000] [--many 30000]``

The arms are interleaved, on one core, on 1-s padded clips at 16 kHz; results are medians:

* ``antigram``: list, check, decode, resample, mix noise, STFT, normalise, write a checked store,
* ``librosa``: librosa.load and scipy's stft, as the paper's authors did; nothing mixed or written,
* ``lhotse``: compute_and_store_features with its Spectrogram of the same frames; nothing mixed.

Their CPU time is noted too, as other programs disturb it less. Then antigram is timed with one and
with two processes on repeated recordings, where the bytes that it writes are counted; stage by
stage; and against raw reading and writing of the same bytes. The result is saved in
results/prepare.json.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from antigram.pipeline.storage.files import size_of
from benchmarks.record import save, spent, warm_memory

RATE, SECONDS = 16_000, 1
_CLIP_BYTES = 126 * 129 * 4
_SPARE = 256 << 20  # bytes of memory that are touched besides those of magnitudes and store


def antigram(home: Path, noise_home: Path, folder: Path, workers: int) -> int:
    """Prepare a store with noise; return the number of clips."""
    from antigram.pipeline.audio.noise import NoiseBank, noise_files
    from antigram.pipeline.corpora import CORPORA
    from antigram.pipeline.features.naming import recipe_for
    from antigram.pipeline.features.preparation import prepare

    noise = noise_files([noise_home])[1]
    asked = {"noise": "high", "noise_files": NoiseBank.digest_of(noise)}
    corpus, recipe = recipe_for(CORPORA["fsdd"], asked)
    target = folder / "store.zarr"
    return prepare(corpus, home, recipe, target, noise=noise, workers=workers).computed


def librosa_way(paths: list[Path], _folder: Path) -> int:
    """Load each recording with librosa and transform it with scipy; store nothing."""
    import librosa
    from scipy.signal import stft

    for path in paths:
        y, _ = librosa.load(path, sr=RATE)
        y = np.pad(y[: RATE * SECONDS], (0, max(0, RATE * SECONDS - y.size)))
        np.abs(stft(y, window="hamming", nperseg=256, noverlap=128)[2])
    return len(paths)


def lhotse_way(paths: list[Path], folder: Path) -> int:
    """Make a manifest, pad cuts to a second, and store features, all with lhotse's defaults."""
    import lhotse

    recordings = lhotse.RecordingSet.from_recordings(
        lhotse.Recording.from_file(path, recording_id=path.stem).resample(RATE) for path in paths
    )
    cuts = lhotse.CutSet.from_manifests(recordings=recordings)
    cuts = cuts.truncate(max_duration=SECONDS, offset_type="start").pad(duration=SECONDS)
    config = lhotse.features.SpectrogramConfig(
        sampling_rate=RATE, frame_length=0.016, frame_shift=0.008, dither=0.0, window_type="hamming"
    )
    with (folder / "bars").open("w") as bars, contextlib.redirect_stderr(bars):
        done = cuts.compute_and_store_features(
            lhotse.features.Spectrogram(config), folder / "lhotse", num_jobs=1
        )
    return len(done)


class Timed(NamedTuple):
    """What one call took.

    Attributes:
        rate: clips per second.
        cpu_us: CPU time of a clip in microseconds, of all processes.
        written: bytes written to files on disk.
    """

    rate: float
    cpu_us: float
    written: int


def timed(function: Callable[..., int], *arguments: object) -> Timed:
    """Return what one call took."""
    begun, (cpu_s, written) = time.perf_counter(), spent()
    clips = function(*arguments)
    seconds, (cpu_s_then, written_then) = time.perf_counter() - begun, spent()
    cpu_us = 1e6 * (cpu_s_then - cpu_s) / clips
    return Timed(clips / seconds, cpu_us, written_then - written)


WAYS = ("librosa", "lhotse", "antigram")


def one_arm(arm: str, paths: list[Path], noise_home: Path, place: Path) -> Timed:
    """Return what an arm takes on one core, without imports and compilation."""
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})

    def go(some: list[Path]) -> Timed:
        folder = Path(tempfile.mkdtemp(dir=place))
        if arm == "antigram":
            home = repeated(some, len(some), folder)
            return timed(antigram, home, noise_home, folder, 1)
        way = librosa_way if arm == "librosa" else lhotse_way
        return timed(way, some, folder)

    go(paths[:20])
    with warm_memory(2 * len(paths) * _CLIP_BYTES + _SPARE):
        return go(paths)


def rounds(asked: argparse.Namespace) -> dict[str, list[Timed]]:
    """Return what each arm took in each round; each arm has its own process.

    The arms' files are kept to the end: for minutes after thousands of files were deleted, ext4
    takes a millisecond to create one.
    """
    found: dict[str, list[Timed]] = {arm: [] for arm in WAYS}
    with tempfile.TemporaryDirectory() as place:
        for _ in range(asked.rounds):
            for arm, times in found.items():
                command = [sys.executable, "-m", "benchmarks.prepare", "--arm", arm]
                command += ["--place", place]
                for name in ("source", "noise_source", "clips"):
                    command += [f"--{name.replace('_', '-')}", str(getattr(asked, name))]
                done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
                times.append(Timed(*json.loads(done.stdout.splitlines()[-1])))
    return found


def repeated(paths: list[Path], clips: int, folder: Path) -> Path:
    """Make a corpus of the given number of clips: links to the recordings, under distinct takes."""
    recordings = folder / "fsdd" / "recordings"
    recordings.mkdir(parents=True)
    for number in range(clips):
        path = paths[number % len(paths)]
        head, _, take = path.stem.rpartition("_")
        (recordings / f"{head}_{int(take) + 50 * (number // len(paths))}.wav").symlink_to(path)
    return folder / "fsdd"


def scaling(
    paths: list[Path], noise_home: Path, clips: int, count: int
) -> tuple[dict[str, list[Timed]], int]:
    """Return what one and two processes take, alternately, and the bytes of the store."""
    found: dict[str, list[Timed]] = {"1": [], "2": []}
    size = 0
    with tempfile.TemporaryDirectory() as folder:
        home = repeated(paths, clips, Path(folder))
        for _ in range(count):
            for workers in found:
                warm = warm_memory(2 * clips * _CLIP_BYTES + _SPARE)
                with tempfile.TemporaryDirectory() as place, warm:
                    took = timed(antigram, home, noise_home, Path(place), int(workers))
                    found[workers].append(took)
                    size = size_of(Path(place) / "store.zarr")
    return found, size


def stages(paths: list[Path], noise_home: Path) -> dict[str, float]:
    """Return the microseconds per clip of each stage, run one after the other in this process."""
    from antigram.pipeline.audio.decoding import probe, read
    from antigram.pipeline.audio.noise import NoiseBank, mix_noise, noise_files
    from antigram.pipeline.audio.stft import stft
    from antigram.pipeline.storage.chunks import ArraySpec, encode, write_chunk
    from antigram.pipeline.storage.folder import Folder

    spent = dict.fromkeys(
        ("header", "decode and resample", "mix", "stft", "normalise", "write"), 0.0
    )
    warm = warm_memory(2 * len(paths) * _CLIP_BYTES + _SPARE)
    with tempfile.TemporaryDirectory() as folder, warm:
        bank = NoiseBank.build(noise_files([noise_home])[1], RATE, Path(folder) / "noise.f32")
        samples = bank.samples()
        block = np.zeros((128, 126, 129), np.float32)
        spec = ArraySpec("features", (128, 126, 129), "float32", 128)
        used = paths[: len(paths) // 128 * 128]

        def spend(stage: str, begun: float) -> float:
            now = time.perf_counter()
            spent[stage] += now - begun
            return now

        for number, path in enumerate(used):
            now = time.perf_counter()
            probe(path)
            now = spend("header", now)
            heard = read(path, start=0, count=RATE, sample_rate=RATE)
            y = np.zeros(RATE, np.float32)
            y[: heard.size] = heard
            now = spend("decode and resample", now)
            mixed = mix_noise(
                y, bank, samples, level="high", snr_mode="exact", seed=0, clip_id=path.stem
            )
            now = spend("mix", now)
            block[number % 128] = stft(mixed.y)
            now = spend("stft", now)
            if number % 128 == 127:
                data = encode(spec, 0, (block - np.float32(0.01)) * np.float32(20))
                now = spend("normalise", now)
                write_chunk(Folder(Path(folder)), spec, 0, data)
                spend("write", now)
        raw = _raw(used, Path(folder), len(used) * _CLIP_BYTES)
    return {stage: 1e6 * s / len(used) for stage, s in spent.items()} | raw


def _raw(paths: list[Path], folder: Path, written: int) -> dict[str, float]:
    """Return microseconds per clip for reading the files, and for writing their features."""
    begun = time.perf_counter()
    for path in paths:
        path.read_bytes()
    read_s = time.perf_counter() - begun
    block = bytes(8 << 20)
    begun = time.perf_counter()
    with (folder / "raw").open("wb") as file:
        for _ in range(max(1, written // len(block))):
            file.write(block)
        file.flush()
        os.fsync(file.fileno())
    write_s = time.perf_counter() - begun
    return {
        "raw read of the files": 1e6 * read_s / len(paths),
        "raw write of the features": 1e6 * write_s / len(paths),
    }


def main() -> None:
    """Measure all arms, print the table, and save the result."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    corpora = Path(os.environ.get("ANTIGRAM_CORPORA", "workspace/corpora"))
    parser.add_argument("--source", type=Path, default=corpora / "fsdd")
    parser.add_argument("--noise-source", type=Path, default=corpora / "ms-snsd")
    parser.add_argument("--clips", type=int, default=3_000)
    parser.add_argument("--many", type=int, default=30_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--name", default="prepare")
    parser.add_argument("--arm", choices=WAYS, help="only this one, once; used by itself")
    parser.add_argument("--place", type=Path, help="where --arm writes")
    asked = parser.parse_args()
    paths = sorted((asked.source.resolve() / "recordings").glob("*.wav"))[: asked.clips]
    if asked.arm:
        print(json.dumps(one_arm(asked.arm, paths, asked.noise_source, asked.place)))
        return
    arms = rounds(asked)
    medians = {arm: statistics.median(t.rate for t in times) for arm, times in arms.items()}
    cpu = {arm: statistics.median(t.cpu_us for t in times) for arm, times in arms.items()}
    many, size = scaling(paths, asked.noise_source, asked.many, asked.rounds)
    two = {workers: statistics.median(t.rate for t in times) for workers, times in many.items()}
    written = max(t.written for times in many.values() for t in times)
    content: dict[str, Any] = {
        "clips": len(paths),
        "clips_per_second": medians,
        "rounds": {arm: [t.rate for t in times] for arm, times in arms.items()},
        "over_librosa": medians["antigram"] / medians["librosa"],
        "over_lhotse": medians["antigram"] / medians["lhotse"],
        "cpu_microseconds_per_clip": cpu,
        "cpu_rounds": {arm: [t.cpu_us for t in times] for arm, times in arms.items()},
        "many_clips": asked.many,
        "many_clips_per_second": two,
        "many_rounds": {workers: [t.rate for t in times] for workers, times in many.items()},
        "two_over_one": two["2"] / two["1"],
        "store_bytes": size,
        "written_bytes": written,
        "written_over_store": written / size,
        "microseconds_per_clip": stages(paths, asked.noise_source),
    }
    for arm, rate in medians.items():
        print(f"{arm:10s} {rate:8.0f} clips/s, {cpu[arm]:6.0f} us of CPU a clip, one core")
    for workers, rate in two.items():
        print(f"antigram   {rate:8.0f} clips/s, {workers} processes, {asked.many} clips")
    print(f"written: {content['written_over_store']:.3f} x the store")
    for stage, us in content["microseconds_per_clip"].items():
        print(f"{stage:26s} {us:8.1f} us a clip")
    print(json.dumps(content))
    print(save(asked.name, content))


if __name__ == "__main__":
    main()
