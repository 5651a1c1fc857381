"""The demo's corpus: spoken digits synthesised on this machine by espeak-ng.

Source: `antigram.pipeline.corpora.synth`; 20 voices x 10 digits x 4 prosodies, 22,050 Hz WAV, in
the public domain.
Layout: ``speech/<digit>_<voice>_<prosody>_<take>.wav``, and noise in ``noise_train``.
Labels: ``word`` (10), ``speaker`` (the voice, 20), ``emotion`` (the prosody: pitch, range, rate and
volume; 4).
Split: none. Every voice says every digit; ``by:speaker`` keeps voices apart.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from antigram.pipeline.corpora.synth import synthesise
from antigram.pipeline.corpus import Clip, Corpus, CorpusError, wav_names

__all__ = ["DEMO"]

_NAME = re.compile(r"(?P<word>[a-z]+)_(?P<speaker>[a-z0-9+-]+)_(?P<emotion>[a-z]+)_\d+\.wav")


def _clips(home: Path, _options: Mapping[str, str]) -> Iterator[Clip]:
    for file in wav_names(home / "speech"):
        if (name := _NAME.fullmatch(file)) is None:
            raise CorpusError(f"demo: {file} is not named <digit>_<voice>_<prosody>_<take>.wav")
        yield Clip(id=file.removesuffix(".wav"), path=f"speech/{file}", labels=name.groupdict())


DEMO = Corpus(
    name="demo",
    labels=("word", "speaker", "emotion"),
    seconds=1.0,
    longer="cut",
    licence="CC0-1.0",
    citation="Speech synthesised by espeak-ng, https://github.com/espeak-ng/espeak-ng.",
    how_to_get="`antigram prepare demo` synthesises it; that needs `pip install espeakng-loader`.",
    is_home=lambda folder: (folder / "speech").is_dir() and (folder / "noise_train").is_dir(),
    list_clips=_clips,
    has_noise=True,
    synthesise=synthesise,
)
