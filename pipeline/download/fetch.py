"""Fetch one archive over HTTP: resumed after a cut, hash checked, kept. No unpacking.

pooch decides whether a fetch is needed, and checks the hash; its own downloader starts again from
nothing after a cut, so that ours does the transfer. A file that is not whole is called
``NAME.partial``.
"""

from __future__ import annotations

import logging
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import pooch
import requests
import urllib3

from antigram.pipeline.corpus import Archive
from antigram.pipeline.errors import InputError
from antigram.pipeline.storage.files import size_text
from antigram.pipeline.workspace import locked

__all__ = ["UNPACKED", "Fetched", "check_room", "fetch"]

UNPACKED = 2  # how many times its size an archive of recordings takes when unpacked, at most
_CHUNK = 1 << 20
_CHECK_ROOM = 64 << 20  # bytes of unknown total between two looks at the disk
_TIMEOUT_S = (20, 60)  # to connect; between two pieces
_SPAN = re.compile(r"bytes (\d+)-\d+/(\d+|\*)")
_MAGIC = {".zip": b"PK\x03\x04", ".gz": b"\x1f\x8b"}

OnProgress = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Fetched:
    """An archive on this disk; ``verified``: it has the hash that was published."""

    path: Path
    sha256: str
    size: int
    verified: bool


def check_room(folder: Path, needed: int, what: str) -> None:
    """Refuse to begin what cannot end.

    Raises:
        InputError: there are fewer free bytes than needed.
    """
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise InputError(
            f"{folder}: {size_text(free)} are free, {what} needs about {size_text(needed)} "
            "(packed and unpacked). Make room, or choose another --workspace."
        )


def fetch(
    archive: Archive,
    folder: Path,
    *,
    on_progress: OnProgress | None = None,
    on_message: Callable[[str], None] | None = None,
) -> Fetched:
    """Return the archive, from ``folder`` if it is there with the right hash, else fetched.

    Raises:
        InputError: the network failed, or what came is not what was published.
    """
    goal = folder / archive.name
    with locked(goal, "fetching"):
        return _fetch(archive, goal, on_progress, on_message)


def _fetch(
    archive: Archive,
    goal: Path,
    on_progress: OnProgress | None,
    on_message: Callable[[str], None] | None,
) -> Fetched:
    pooch.get_logger().setLevel(logging.WARNING)  # it would tell what we tell
    if goal.is_file() and on_message is not None:
        on_message(f"{goal}: already there; checking it")
    downloader = _Resuming(archive, goal.parent, on_progress, on_message)
    try:
        pooch.retrieve(
            archive.url,
            archive.known_hash,
            fname=goal.name,
            path=goal.parent,
            downloader=downloader,
        )
    except InputError:
        raise
    except (requests.RequestException, urllib3.exceptions.HTTPError) as error:
        kept = downloader.partial.stat().st_size if downloader.partial.exists() else 0
        raise InputError(
            f"{archive.url}: {_reason(error)}; wanted the whole file. "
            f"Run again: {f'it goes on after the {kept} bytes that came' if kept else 'it retries'}"
        ) from None
    except ValueError as error:  # pooch's, and it has deleted the file
        raise InputError(
            f"{archive.url}: {error} Run again to fetch it anew; if it stays so, the publisher has "
            "another file there now."
        ) from None
    algorithm, _, digest = (archive.known_hash or "").partition(":")
    if algorithm != "sha256":
        digest = pooch.file_hash(str(goal), alg="sha256")
    if archive.known_hash is None and on_message is not None:
        on_message(
            f"{archive.name}: SHA-256 {digest}; nobody published one, so nothing vouches for it"
        )
    verified = archive.known_hash is not None
    return Fetched(path=goal, sha256=digest, size=goal.stat().st_size, verified=verified)


def _reason(error: Exception) -> str:
    """The inmost of the causes that requests and urllib3 write around each other."""
    text = str(error).rpartition("(Caused by ")[2].rstrip(")")
    return f"{type(error).__name__}: {text[:200]}"


class _Resuming:
    """What pooch calls to transfer a file: goes on where the last transfer was cut."""

    def __init__(
        self,
        archive: Archive,
        folder: Path,
        on_progress: OnProgress | None,
        on_message: Callable[[str], None] | None,
    ) -> None:
        self.archive, self.folder, self._on_progress, self._on_message = (
            archive,
            folder,
            on_progress,
            on_message,
        )
        self.partial = folder / f"{archive.name}.partial"

    def __call__(self, url: str, output_file: str, _pooch: object) -> None:
        """Transfer ``url`` to ``output_file``."""
        have = self.partial.stat().st_size if self.partial.exists() else 0
        if not have or have != self.archive.size:
            with requests.Session() as session:
                # As it is: else a server may pack it once more, and sizes mean nothing.
                session.headers["Accept-Encoding"] = "identity"
                if not (have and self._go_on(session, url, have)):
                    self._begin(session, url)
        self.partial.replace(output_file)

    def _go_on(self, session: requests.Session, url: str, have: int) -> bool:
        """Append what is missing; False if the server will not have it so."""
        headers = {"Range": f"bytes={have}-"}
        with session.get(url, headers=headers, stream=True, timeout=_TIMEOUT_S) as answer:
            told = answer.headers.get("Content-Range", "")
            if answer.status_code == 416:
                return told == f"bytes */{have}"  # nothing was missing but the name
            span = _SPAN.fullmatch(told)
            if answer.status_code != 206 or span is None or int(span[1]) != have:
                self._tell(f"{url}: the server does not resume; fetching it anew")
                return False
            total = None if span[2] == "*" else int(span[2])
            self._tell(f"{url}: going on after {have} bytes")
            self._save(answer, have, total)
        return True

    def _begin(self, session: requests.Session, url: str) -> None:
        with session.get(url, stream=True, timeout=_TIMEOUT_S) as answer:
            if answer.status_code != 200:
                raise InputError(
                    f"{url}: the server answers {answer.status_code} {answer.reason}; wanted the "
                    f"file. Try later, or put the file there by hand: {self._goal}"
                )
            length = answer.headers.get("Content-Length", "")
            self._save(answer, 0, int(length) if length.isdecimal() else None)

    @property
    def _goal(self) -> Path:
        return self.folder / self.archive.name

    def _tell(self, text: str) -> None:
        if self._on_message is not None:
            self._on_message(text)

    def _save(self, answer: requests.Response, have: int, told: int | None) -> None:
        """Write the body behind the ``have`` bytes that are there.

        ``told`` is the size of the complete file; where the server tells none, the published one
        serves. Without either, the end of the body cannot be told from a cut: what came is then a
        complete archive, or refused when it is unpacked. It may not fill the disk while it comes.
        """
        chunks: Iterator[bytes] = answer.raw.stream(_CHUNK, decode_content=False)
        first = next(chunks, b"")
        if not have:
            self._check_kind(answer, first)
        total = self._total(answer, have, told)
        stage, done, checked = f"fetching {self.archive.name} (MB)", have, have
        with self.partial.open("ab" if have else "wb") as file:
            for chunk in chain([first], chunks):
                done += file.write(chunk)
                if total is None and done >= checked + _CHECK_ROOM:
                    checked = done
                    check_room(self.folder, UNPACKED * done, self.archive.name)
                if total is not None and done > total:
                    break
                if self._on_progress is not None:
                    self._on_progress(stage, done // 10**6, (total or done + 10**6) // 10**6)
        if total is not None and done > total:
            self.partial.unlink()
            raise InputError(
                f"{answer.url}: sends more than the {total} bytes that the file has; nothing was "
                f"kept. Try later, or put the right file there: {self._goal}"
            )
        if total is not None and done != total:
            raise requests.ConnectionError(f"{done} of {total} bytes came")

    def _total(self, answer: requests.Response, have: int, told: int | None) -> int | None:
        """Size of the complete file, if anybody tells it; checked against what is known."""
        if told is not None and self.archive.size not in (None, told):
            raise InputError(
                f"{answer.url}: has {told} bytes, the published file {self.archive.size}; the "
                f"publisher has another file there now. Put the right one there: {self._goal}"
            )
        total = self.archive.size if told is None else told
        if total is not None:
            check_room(self.folder, total - have + UNPACKED * total, self.archive.name)
        return total

    def _check_kind(self, answer: requests.Response, first: bytes) -> None:
        """Refuse an error page that is served as if it were the file."""
        magic = _MAGIC[Path(self.archive.name).suffix]
        if not first.startswith(magic):
            kind = answer.headers.get("Content-Type", "something")
            raise InputError(
                f"{answer.url}: sent {kind} that begins with {first[:24]!r}; wanted an archive, "
                f"which begins with {magic!r}. An error page of the server or of a proxy? "
                f"Try later, or put the file there by hand: {self._goal}"
            )
