"""Download a corpus: fetch, check and extract its archives where `prepare` looks for them.

The module of each corpus lists its archives, with the sizes and hashes that are published.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from antigram.pipeline.corpus import Archive, Corpus, CorpusError, locate
from antigram.pipeline.download.extract import Limits, unpacked
from antigram.pipeline.download.fetch import UNPACKED, Fetched, check_free_space, fetch
from antigram.pipeline.errors import InputError
from antigram.pipeline.storage.durable import fsync_folder
from antigram.pipeline.workspace import locked

__all__ = ["Downloaded", "download"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Downloaded:
    """Result of `download`.

    Attributes:
        corpus: name of the corpus.
        path: the folder where `prepare` looks for it.
        archives: the fetched archives; empty if the corpus existed already.
    """

    corpus: str
    path: Path
    archives: tuple[Fetched, ...] = ()

    @property
    def left_alone(self) -> bool:
        """Whether the corpus existed already and nothing was fetched."""
        return not self.archives

    def to_json(self) -> dict[str, Any]:
        """Return the fields of ``download --json``."""
        return {
            "corpus": self.corpus,
            "path": str(self.path),
            "sha256": {archive.path.name: archive.sha256 for archive in self.archives},
            "bytes": sum(archive.size for archive in self.archives),
            "verified": bool(self.archives) and all(archive.verified for archive in self.archives),
            "left_alone": self.left_alone,
        }


def download(
    corpus: Corpus,
    target: Path,
    *,
    subset: str | None = None,
    on_progress: Callable[[str, int, int], None] | None = None,
    on_message: Callable[[str], None] | None = None,
    limits: Limits | None = None,
) -> Downloaded:
    """Download a corpus into ``target``, atomically; a subset is added to existing subsets.

    The archives are kept in the folder ``archives`` beside ``target`` and are not fetched again.

    Args:
        corpus: the corpus to fetch.
        target: the corpus's folder, or the folder above it.
        subset: name of a subset; default: the subset of the first archive.
        on_progress: called with a stage, the megabytes done and the megabytes in total.
        on_message: called with a line for the user.
        limits: largest extracted sizes; default: `Limits`.

    Raises:
        InputError: the corpus has no archives or no such subset, the network failed, an archive
            differs from what is published, there is too little free disk space, or ``target``
            holds something else.
    """
    inform = on_message or (lambda _text: None)
    archives = _archives(corpus, subset)
    subset = archives[0].subset
    with locked(target, "downloading"):
        home = _home(corpus, target)
        if home is not None and (home / subset).exists():
            inform(f"{corpus.name}: already there, in {home}; nothing to do")
            return Downloaded(corpus=corpus.name, path=target)
        if home is None and target.exists() and not (target.is_dir() and not any(target.iterdir())):
            raise InputError(
                f"{target}: is there, and holds no {corpus.name}; wanted nothing there, or the "
                "corpus. Move it away, or choose another `workspace`."
            )
        folder = target.parent / "archives"
        folder.mkdir(exist_ok=True)
        # An unknown size is checked when the server states it.
        packed = sum(archive.size or 0 for archive in archives)
        fetched_before = sum(
            _bytes_fetched(folder, archive) for archive in archives if archive.size
        )
        check_free_space(folder, (1 + UNPACKED) * packed - fetched_before, corpus.name)
        fetched = tuple(
            fetch(archive, folder, on_progress=on_progress, on_message=on_message)
            for archive in archives
        )
        check_free_space(folder, UNPACKED * sum(archive.size for archive in fetched), corpus.name)
        with unpacked(
            [f.path for f in fetched], target, limits=limits, on_progress=on_progress
        ) as tree:
            new = _home(corpus, tree)
            if new is None or not (new / subset).is_dir():
                names = ", ".join(str(archive.path) for archive in fetched)
                raise InputError(
                    f"{names}: unpacked, but no {subset or corpus.name} as antigram knows it is "
                    "inside. Nothing was kept but the archive; report it, or unpack it by hand."
                )
            if home is not None:
                (new / subset).rename(home / subset)
            else:
                tree.rename(target)  # also replaces an empty folder
            fsync_folder(target.parent if home is None else home)
    inform(
        f"kept: {', '.join(str(archive.path) for archive in fetched)}; delete if you need the room"
    )
    return Downloaded(corpus=corpus.name, path=target, archives=fetched)


def _bytes_fetched(folder: Path, archive: Archive) -> int:
    """Return how many bytes of an archive were fetched earlier."""
    files = [folder / archive.name, folder / f"{archive.name}.partial"]
    return next((path.stat().st_size for path in files if path.is_file()), 0)


def _home(corpus: Corpus, folder: Path) -> Path | None:
    try:
        return locate(corpus, [folder])
    except CorpusError:
        return None


def _archives(corpus: Corpus, subset: str | None) -> tuple[Archive, ...]:
    """Return the archives of a corpus, or of one of its subsets."""
    if not corpus.archives:
        raise InputError(f"{corpus.name}: there is nothing to download. {corpus.how_to_get}")
    subsets = list(dict.fromkeys(archive.subset for archive in corpus.archives))
    if subset is not None and subsets == [""]:
        raise InputError(f"subset {subset!r}: {corpus.name} has no subsets; leave it out")
    wanted = subset or subsets[0]
    if wanted not in subsets:
        raise InputError(f"subset {subset!r}: wanted one of {', '.join(subsets)}")
    return tuple(archive for archive in corpus.archives if archive.subset == wanted)
