"""A corpus's archives: fetched, checked, unpacked, and put where `prepare` finds them.

Which archives these are, and what is published about them, stands in the corpus's own file.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from antigram.pipeline.corpus import Archive, Corpus, CorpusError, locate
from antigram.pipeline.download.extract import Limits, unpacked
from antigram.pipeline.download.fetch import UNPACKED, Fetched, check_room, fetch
from antigram.pipeline.errors import InputError
from antigram.pipeline.storage.durable import fsync_folder
from antigram.pipeline.workspace import locked

__all__ = ["Downloaded", "download"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Downloaded:
    """What `download` did; ``path`` is what `prepare` looks for."""

    corpus: str
    path: Path
    archives: tuple[Fetched, ...] = ()

    @property
    def left_alone(self) -> bool:
        """Whether the corpus was there already, and nothing was fetched."""
        return not self.archives

    def to_json(self) -> dict[str, Any]:
        """Fields of ``download --json``; hashes by the archive's name, as NSynth has three."""
        return {
            "corpus": self.corpus,
            "path": str(self.path),
            "sha256": {each.path.name: each.sha256 for each in self.archives},
            "bytes": sum(each.size for each in self.archives),
            "verified": bool(self.archives) and all(each.verified for each in self.archives),
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
    """Put a corpus into ``target``, as a whole or not at all; a subset is added to those there.

    Archives are kept in the folder ``archives`` beside it, and not fetched a second time.

    Args:
        corpus: what to fetch.
        target: what becomes the corpus's folder, or the folder above it.
        subset: of a corpus that has subsets; default: that of its first archive.
        on_progress: shows progress, in megabytes.
        on_message: shows a line to the user.
        limits: what the archives may unpack to.

    Raises:
        InputError: there is nothing to download, the network failed, the archive is another one,
            the disk is too small, or something else is in the way.
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
                "corpus. Move it away, or choose another --workspace."
            )
        kept = target.parent / "archives"
        kept.mkdir(exist_ok=True)
        # Those of unknown size are checked when the server tells it.
        packed = sum(archive.size or 0 for archive in archives)
        have = sum(_bytes_there(kept, archive) for archive in archives if archive.size)
        check_room(kept, (1 + UNPACKED) * packed - have, corpus.name)
        fetched = tuple(
            fetch(archive, kept, on_progress=on_progress, on_message=on_message)
            for archive in archives
        )
        check_room(kept, UNPACKED * sum(each.size for each in fetched), corpus.name)
        with unpacked(
            [f.path for f in fetched], target, limits=limits, on_progress=on_progress
        ) as tree:
            new = _home(corpus, tree)
            if new is None or not (new / subset).is_dir():
                names = ", ".join(str(each.path) for each in fetched)
                raise InputError(
                    f"{names}: unpacked, but no {subset or corpus.name} as antigram knows it is "
                    "inside. Nothing was kept but the archive; report it, or unpack it by hand."
                )
            if home is not None:
                (new / subset).rename(home / subset)
            else:
                tree.rename(target)  # takes the place of an empty folder, too
            fsync_folder(target.parent if home is None else home)
    inform(f"kept: {', '.join(str(each.path) for each in fetched)}; delete if you need the room")
    return Downloaded(corpus=corpus.name, path=target, archives=fetched)


def _bytes_there(kept: Path, archive: Archive) -> int:
    """Bytes that need not be fetched."""
    there = [p for p in (kept / archive.name, kept / f"{archive.name}.partial") if p.is_file()]
    return there[0].stat().st_size if there else 0


def _home(corpus: Corpus, folder: Path) -> Path | None:
    try:
        return locate(corpus, [folder])
    except CorpusError:
        return None


def _archives(corpus: Corpus, subset: str | None) -> tuple[Archive, ...]:
    """Archives that hold a corpus, or the subset that is asked for."""
    if not corpus.archives:
        raise InputError(f"{corpus.name}: there is nothing to download. {corpus.how_to_get}")
    subsets = list(dict.fromkeys(archive.subset for archive in corpus.archives))
    if subset is not None and subsets == [""]:
        raise InputError(f"subset {subset!r}: {corpus.name} has no subsets; leave it out")
    wanted = subset or subsets[0]
    if wanted not in subsets:
        raise InputError(f"subset {subset!r}: wanted one of {', '.join(subsets)}")
    return tuple(archive for archive in corpus.archives if archive.subset == wanted)
