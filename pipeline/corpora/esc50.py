"""ESC-50: 2,000 environmental sounds of 50 classes, 5 seconds, 44.1 kHz mono WAV.

Source: Piczak (2015), github.com/karolpiczak/ESC-50; CC BY-NC 3.0.
Layout: ``audio/<fold>-<source>-<take>-<target>.wav`` and ``meta/esc50.csv`` (``filename``,
``fold``, ``target``, ``category``, ``esc10``, ``src_file``, ``take``).
Labels: ``category`` (50), ``group`` (5, the first digit of the target's tens), ``esc10`` (whether
it is of the ten classes of ESC-10), ``fold`` (5).
Split: five folds by the publisher, which keep recordings of one source together:
``kfold:fold:5``. Other splits keep a source (``src_file``) in one part, too.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from antigram.pipeline.corpora.strict_csv import read_table
from antigram.pipeline.corpus import Archive, Clip, Corpus, CorpusError, Entry, Rejected, Skipped
from antigram.pipeline.storage.regular import is_named

__all__ = ["ESC50"]

_GROUPS = ("animals", "nature", "human", "domestic", "urban")
_COLUMNS = ("filename", "fold", "target", "category", "esc10", "src_file")


def _clips(home: Path, _options: Mapping[str, str]) -> Iterator[Entry]:
    table = read_table(home / "meta" / "esc50.csv")
    if missing := set(_COLUMNS) - set(table.names):
        raise CorpusError(f"{table.path}:1: no column {', '.join(sorted(missing))}")
    named = set()
    for row in sorted(table.rows, key=lambda row: row.cells[table.names.index("filename")]):
        cells = dict(zip(table.names, row.cells, strict=True))
        name, target = cells["filename"], cells["target"]
        where = f"{table.path}:{row.number}"
        if not name.endswith(".wav") or "/" in name or name in named:
            raise CorpusError(f"{where}: filename is {name!r}; wanted a WAV file of audio, once")
        if not target.isdecimal() or int(target) >= 10 * len(_GROUPS):
            raise CorpusError(f"{where}: target is {target!r}; wanted a number from 0 to 49")
        named.add(name)
        if not is_named(home / "audio" / name):
            yield Rejected(f"audio/{name}", f"{where}: no such file")
            continue
        yield Clip(
            id=name.removesuffix(".wav"),
            path=f"audio/{name}",
            labels={
                "category": cells["category"],
                "group": _GROUPS[int(target) // 10],
                "esc10": cells["esc10"].lower(),
                "fold": cells["fold"],
            },
            group=f"source {cells['src_file']}",
        )
    files = sorted(path.name for path in (home / "audio").glob("*.wav"))
    if hidden := sum(name.startswith(".") for name in files):
        yield Skipped("hidden file", hidden)
    if unnamed := [name for name in files if name not in named and not name.startswith(".")]:
        raise CorpusError(f"esc50: {home / 'audio' / unnamed[0]} is not in {table.path}")


ESC50 = Corpus(
    name="esc50",
    labels=("category", "group", "esc10", "fold"),
    seconds=5.0,
    longer="cut",
    licence="CC-BY-NC-3.0",
    citation="Piczak, K. J. (2015). ESC: Dataset for Environmental Sound Classification. ACM "
    "Multimedia, 1015-1018. doi:10.1145/2733373.2806390.",
    how_to_get="ESC-50: github.com/karolpiczak/ESC-50.",
    homepage="https://github.com/karolpiczak/ESC-50",
    archives=(
        # GitHub makes the archive on request, states no size and does not guarantee its bytes.
        Archive(
            url="https://github.com/karolpiczak/ESC-50/archive/master.zip",
            name="ESC-50-master.zip",
        ),
    ),
    is_home=lambda folder: is_named(folder / "meta" / "esc50.csv"),
    list_clips=_clips,
)
