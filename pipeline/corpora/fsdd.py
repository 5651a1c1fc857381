"""Free Spoken Digit Dataset: 6 speakers x 10 digits x 50 takes, 8 kHz mono WAV.

Source: https://github.com/Jakobovski/free-spoken-digit-dataset; CC BY-SA 4.0.
Layout: ``recordings/<digit>_<speaker>_<take>.wav``.
Labels: ``word`` (0 to 9), ``speaker`` (6).
Split: the authors' own, takes 0-4 are test; antigram takes 5-9 for validation. Every speaker is in
all splits; ``by:speaker`` keeps speakers apart.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from antigram.pipeline.corpus import Archive, Clip, Corpus, CorpusError, Split, wav_names

__all__ = ["FSDD"]

_NAME = re.compile(r"(?P<digit>\d)_(?P<speaker>[a-z]+)_(?P<take>\d+)\.wav")


def _clips(home: Path, _options: Mapping[str, str]) -> Iterator[Clip]:
    folder = home / "recordings"
    for file in wav_names(folder):
        if (name := _NAME.fullmatch(file)) is None:
            raise CorpusError(f"fsdd: {folder / file} is not named <digit>_<speaker>_<take>.wav")
        take = int(name["take"])
        split: Split = "test" if take < 5 else "validation" if take < 10 else "train"
        yield Clip(
            id=file.removesuffix(".wav"),
            path=f"recordings/{file}",
            labels={"word": name["digit"], "speaker": name["speaker"]},
            split=split,
        )


FSDD = Corpus(
    name="fsdd",
    labels=("word", "speaker"),
    seconds=1.0,
    longer="cut",
    official=True,
    licence="CC-BY-SA-4.0",
    citation="Jackson, Z., Souza, C., Flaks, J., Pan, Y., Nicolas, H., Thite, A. (2018). Free "
    "Spoken Digit Dataset. Zenodo. doi:10.5281/zenodo.1342401.",
    how_to_get="Free Spoken Digit Dataset: github.com/Jakobovski/free-spoken-digit-dataset.",
    homepage="https://github.com/Jakobovski/free-spoken-digit-dataset",
    archives=(
        # tensorflow_datasets has a hash of v1.0.9 as tar.gz, with five speakers. Nobody publishes
        # one of this tag, with six: GitHub makes the archive on request and does not guarantee
        # its bytes.
        Archive(
            url="https://github.com/Jakobovski/free-spoken-digit-dataset/archive/refs/tags/"
            "v1.0.10.zip",
            name="free-spoken-digit-dataset-1.0.10.zip",
        ),
    ),
    is_home=lambda folder: any((folder / "recordings").glob("[0-9]_*_*.wav")),
    list_clips=_clips,
)
