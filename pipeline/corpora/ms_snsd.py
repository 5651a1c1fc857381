"""MS-SNSD: noisy speech, mixed by antigram from clean speech and the corpus's noise recordings.

Source: Reddy et al. (2019), github.com/microsoft/MS-SNSD; code MIT, clean and noise audio under
other licences (CC0, CC BY-SA 3.0 and others).
Layout: ``clean_train/*.wav`` (``p234_001.wav``: speaker and sentence; ``clnsp<n>.wav``: no speaker)
and ``noise_train/<Class>_<n>.wav``. ``--clean-source`` takes any folder of clean speech.
Mixtures (``--hours`` in total): each joins clean recordings of one speaker up to 10 s or more, and
adds one noise recording. The classes of noise rotate, and the SNR is drawn from the five values of
the noise level. A mixture is divided into segments of one second.
Labels: ``noise`` (11), ``speaker`` if the clean file's name contains it.
Split: none by the publisher. All segments of a mixture are in the same split; the same noise
recording can be in several splits.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from antigram.pipeline.audio.decoding import AudioError, probe
from antigram.pipeline.audio.noise import SNR_LEVELS, noise_files
from antigram.pipeline.audio.windows import window_starts
from antigram.pipeline.corpus import (
    Archive,
    Clip,
    Corpus,
    CorpusError,
    Mixture,
    MixtureRequest,
    Rejected,
    Skipped,
)
from antigram.pipeline.draw import draw

__all__ = ["MS_SNSD"]

_MIN_S = 10.0
_FRAGMENT_S = 1.0
# File names of VCTK and LibriSpeech contain the speaker; others do not.
_SPEAKER = re.compile(r"(p\d+)_\d+.*|(\d+)-\d+-\d{4}")
_AUDIO = frozenset({".wav", ".flac"})


def _speaker(stem: str) -> str:
    match = _SPEAKER.fullmatch(stem)
    return (match[1] or match[2]) if match else ""


def _clean(request: MixtureRequest) -> Iterator[tuple[str, str, int] | Rejected]:
    """Yield speaker, relative path and samples of each clean recording, or a rejection."""
    for path in sorted(request.clean.rglob("*")):
        relative = path.relative_to(request.clean)
        hidden = any(part.startswith((".", "noise_")) for part in relative.parts)
        if hidden or path.suffix.lower() not in _AUDIO:
            continue
        try:
            samples = probe(path).samples_at(request.sample_rate)
        except AudioError as error:
            yield Rejected(relative.as_posix(), str(error))
        else:
            yield _speaker(path.stem), relative.as_posix(), samples


def _mixtures(request: MixtureRequest) -> Iterator[Clip | Skipped | Rejected]:
    speakers: dict[str, list[tuple[str, int]]] = defaultdict(list)
    for recording in _clean(request):
        if isinstance(recording, Rejected):
            yield recording
        else:
            speaker, path, samples = recording
            speakers[speaker].append((path, samples))
    if not speakers:
        raise CorpusError(
            f"ms-snsd: no clean speech (*.wav, *.flac) in {request.clean}. It belongs in "
            "clean_train; or name any folder of clean speech with `clean_source`."
        )
    if not request.noise:
        raise CorpusError("ms-snsd: `noise=none` leaves nothing to tell apart: use low or high")
    names, classes = sorted(speakers), sorted(request.noise)
    wanted = round(float(request.options["hours"]) * 3600 / _FRAGMENT_S)
    number = 0
    while wanted > 0:
        name = f"mix{number:06d}"
        # Each round has every speaker once, in a new random order.
        round_number, position = divmod(number, len(names))
        order = sorted(names, key=lambda who: draw(request.seed, f"round {round_number}", who))
        speaker = order[position]
        first, noise_draw, offset, level = draw(request.seed, "mixture", name, 4)
        clean = _take(speakers[speaker], first, request.sample_rate, wanted)
        label = classes[number % len(classes)]
        levels = SNR_LEVELS[request.level]
        mixture = Mixture(
            clean=tuple(clean),
            noise=label,
            recording=noise_draw % request.noise[label],
            offset=offset,
            snr_db=levels[level % len(levels)],
        )
        window = round(request.sample_rate * _FRAGMENT_S)
        wanted -= len(window_starts(mixture.samples, window, window)[0])
        number += 1
        yield Clip(
            id=name,
            path=clean[0][0],
            labels={"noise": label} | ({"speaker": speaker} if speaker else {}),
            mixture=mixture,
        )


def _take(
    recordings: list[tuple[str, int]], first: int, sample_rate: int, fragments: int
) -> list[tuple[str, int]]:
    """Return recordings, cyclically from ``first``, until they reach 10 s; cut the last mixture."""
    taken: list[tuple[str, int]] = []
    total, most = 0, round(fragments * _FRAGMENT_S * sample_rate)
    while total < min(_MIN_S * sample_rate, most):
        path, samples = recordings[(first + len(taken)) % len(recordings)]
        taken.append((path, min(samples, most - total)))
        total += taken[-1][1]
    return taken


def _resolve(option: str, value: str) -> str:
    try:
        hours = float(value)
    except ValueError:
        hours = 0.0
    if not 0 < hours <= 10_000:
        raise CorpusError(f"`{option}` {value!r}: wanted a number of hours above 0")
    return f"{hours:g}"


def _is_home(folder: Path) -> bool:
    try:
        return noise_files([folder])[0] == folder / "noise_train"
    except CorpusError:
        return False


MS_SNSD = Corpus(
    name="ms-snsd",
    labels=("noise", "speaker"),
    seconds=_FRAGMENT_S,
    longer="segment",
    licence="MIT; clean and noise audio: CC0, CC-BY-SA-3.0 and others",
    citation="Reddy, C. K. A., Beyrami, E., Pool, J., Cutler, R., Srinivasan, S., Gehrke, J. "
    "(2019). A Scalable Noisy Speech Dataset and Online Subjective Test Framework. Interspeech, "
    "1816-1820. doi:10.21437/Interspeech.2019-3087.",
    how_to_get="MS-SNSD: github.com/microsoft/MS-SNSD.",
    homepage="https://github.com/microsoft/MS-SNSD",
    archives=(
        # GitHub makes the archive on request, states no size and does not resume. The repository
        # has no releases: this is its current state.
        Archive(
            url="https://github.com/microsoft/MS-SNSD/archive/refs/heads/master.zip",
            name="MS-SNSD-master.zip",
        ),
    ),
    presets={"paper": {"hours": "20", "noise": "low"}},
    is_home=_is_home,
    options={"hours": "1"},
    resolve=_resolve,
    noise="low",
    has_noise=True,
    list_mixtures=_mixtures,
)
