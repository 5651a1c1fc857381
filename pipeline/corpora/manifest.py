"""Manifests: lists of recordings in the formats of other tools, with labels and parts.

Read are, in the order in which a folder is tried:

* Kaldi's data folders: ``wav.scp``, ``segments``, ``utt2spk``, ``text`` (`manifests.kaldi`);
* data sets saved with Hugging Face's `datasets` (`manifests.arrow`);
* lhotse's recordings and supervisions, or cuts (`manifests.lhotse`);
* AudioFolder's ``metadata.csv`` or ``metadata.jsonl`` (`manifests.audiofolder`);
* SpeechBrain's CSV and JSON files (`manifests.speechbrain`);
* a folder for each class (`corpora.folder`).

The source is such a folder, or one file of it. Recordings are below ``audio_root``, which relative
paths begin in; by default that is the folder of the manifest. Only the part of a recording that a
manifest names is used. Labels are fields of text or integers, chosen as in `corpora.folder`. A
random split keeps speakers apart where they are known, unless the speaker is the main label.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

from antigram.pipeline.corpora.folder import FOLDER
from antigram.pipeline.corpora.label_columns import check_options, resolve_option
from antigram.pipeline.corpora.manifests import arrow, audiofolder, kaldi, lhotse, speechbrain
from antigram.pipeline.corpora.manifests.lines import json_lines, numbered_lines
from antigram.pipeline.corpora.manifests.pieces import Pieces
from antigram.pipeline.corpus import Corpus, CorpusError, Entry, Note

__all__ = ["MANIFEST"]

_WANTED = (
    "wanted a manifest of lhotse, Kaldi, SpeechBrain or datasets, metadata.csv or "
    "metadata.jsonl (AudioFolder), or a folder for each class"
)
_Reader = Callable[[Pieces], None]


def _reader(source: Path) -> tuple[str, _Reader] | None:
    """Return the name of a source's format, and what reads it; None for a folder for each class.

    Raises:
        CorpusError: the source is in none of the formats, or in two.
    """
    if not source.is_dir():
        return _reader_of_file(source)
    if folders := kaldi.folders_in(source):
        return "Kaldi", partial(kaldi.read, folders=folders)
    if arrow.is_saved(source):
        return "datasets", partial(arrow.read, parts=arrow.parts_in(source))
    if lhotse.is_lhotse(source):
        return "lhotse", partial(lhotse.read, files=lhotse.files_in(source))
    if files := audiofolder.files_in(source):
        return "AudioFolder", partial(audiofolder.read, files=files)
    if files := speechbrain.files_in(source):
        return "SpeechBrain", partial(speechbrain.read, files=files)
    if any(p.is_dir() and not p.name.startswith(".") for p in source.iterdir()):
        return None
    raise CorpusError(f"manifest: nothing in {source} is a manifest: {_WANTED}")


def _reader_of_file(path: Path) -> tuple[str, _Reader]:
    name = path.name
    if name == "wav.scp":
        return "Kaldi", partial(kaldi.read, folders=[path.parent])
    if name.endswith(".arrow"):
        return "datasets", partial(arrow.read, parts={"": [path]})
    if name.endswith((".jsonl", ".jsonl.gz")):
        _, first = next(json_lines(path), (1, {}))
        if "file_name" in first or "file" in first:
            return "AudioFolder", partial(audiofolder.read, files=[path])
        is_cut = str(first.get("type", "")).endswith("Cut") or "supervisions" in first
        if not is_cut and "sources" not in first and "recording_id" not in first:
            raise CorpusError(f"{path}:1: has {', '.join(first) or 'nothing'}; {_WANTED}")
        return "lhotse", partial(lhotse.read, files=[(path,) if is_cut else lhotse.pair_of(path)])
    if name.endswith(".csv"):
        _, first_line = next(numbered_lines(path), (1, ""))
        if "file_name" in first_line:
            return "AudioFolder", partial(audiofolder.read, files=[path])
        return "SpeechBrain", partial(speechbrain.read, files=[path])
    if name.endswith(".json"):
        return "SpeechBrain", partial(speechbrain.read, files=[path])
    raise CorpusError(f"manifest: {path} is not called like a manifest: {_WANTED}")


def _entries(
    home: Path, options: Mapping[str, str], *, source: Path | None = None, root: Path | None = None
) -> Iterator[Entry]:
    """Yield the parts of recordings of a manifest.

    Args:
        home: folder that all recordings are below.
        options: ``labels`` and ``main_label``.
        source: the manifest; default: ``home``.
        root: folder that relative paths begin in; default: the folder of each file of the manifest.
    """
    source = source or home
    found = _reader(source)
    if found is None:
        if root is not None:
            raise CorpusError(
                f"`audio_root` {root}: {source} is a folder for each class, which holds its "
                "recordings: leave it out"
            )
        assert FOLDER.list_clips is not None
        yield from FOLDER.list_clips(home, options)
        return
    name, read = found
    folder = source if source.is_dir() else source.parent
    pieces = Pieces(folder, home, root, options)
    read(pieces)
    yield Note(f"{source}: {name}")
    yield from pieces.entries(f"manifest: {source}")


def _open(candidates: Iterable[Path], root: Path | None) -> tuple[Corpus, Path]:
    """Return the corpus that lists a manifest, and the folder of its recordings."""
    searched = list(candidates)
    source = next((path for path in searched if path.exists()), None)
    if source is None:
        raise CorpusError(
            f"manifest: no such file or folder: {', '.join(map(str, searched))}. "
            f"Name it with `source`. {MANIFEST.how_to_get}"
        )
    if root is not None and not root.is_dir():
        raise CorpusError(f"`audio_root` {root}: is no folder")
    _reader(source)  # says at once what is wrong
    home = root or (source if source.is_dir() else source.parent)
    return replace(MANIFEST, list_clips=partial(_entries, source=source, root=root)), home


def _is_home(folder: Path) -> bool:
    try:
        _reader(folder)
    except (CorpusError, OSError):
        return False
    return True


MANIFEST = Corpus(
    name="manifest",
    labels=(),
    seconds=1.0,
    longer="segment",
    official=True,
    licence="yours",
    citation="Your own recordings.",
    how_to_get="It lists your own recordings, `antigram prepare manifest` with `source=FILE` or "
    "`source=DIR`: a manifest of lhotse, Kaldi, SpeechBrain or datasets.",
    is_home=_is_home,
    list_clips=_entries,
    options={"labels": "", "main_label": ""},
    resolve=resolve_option,
    adapt=check_options,
    open_source=_open,
)
