"""Fetch one archive over HTTP, resume after an interruption, and check its hash. No extraction.

pooch decides whether to fetch, and checks the hash. Its own downloader cannot resume, so
`_Resuming` does the transfer. An incomplete file is called ``NAME.partial``.
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

__all__ = ["UNPACKED", "Fetched", "check_free_space", "fetch"]

UNPACKED = 2  # upper bound of extracted size over archive size, for recordings
_CHUNK = 1 << 20
_CHECK_EVERY = 64 << 20  # bytes between two checks of the disk, if the total is unknown
_TIMEOUT_S = (20, 60)  # time limits to connect, and between two reads
_SPAN = re.compile(r"bytes (\d+)-\d+/(\d+|\*)")
_MAGIC = {".zip": b"PK\x03\x04", ".gz": b"\x1f\x8b"}

OnProgress = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Fetched:
    """A fetched archive; ``verified`` says whether it has the published hash."""

    path: Path
    sha256: str
    size: int
    verified: bool


def check_free_space(folder: Path, needed: int, what: str) -> None:
    """Raise if there is too little free disk space.

    Args:
        folder: folder on the file system to check.
        needed: bytes that are needed.
        what: name of the archive or corpus that needs them, for the message.

    Raises:
        InputError: fewer bytes are free.
    """
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise InputError(
            f"{folder}: {size_text(free)} are free, {what} needs about {size_text(needed)} "
            "(packed and unpacked). Make room, or choose another `workspace`."
        )


def fetch(
    archive: Archive,
    folder: Path,
    *,
    on_progress: OnProgress | None = None,
    on_message: Callable[[str], None] | None = None,
) -> Fetched:
    """Return an archive in ``folder``; fetch it unless it exists with the right hash.

    Args:
        archive: what to fetch.
        folder: where the file is kept.
        on_progress: called with a stage, the megabytes done and the megabytes in total.
        on_message: called with a line for the user.

    Raises:
        InputError: the network failed, or the file differs from what was published.
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
    pooch.get_logger().setLevel(logging.WARNING)  # its messages would repeat ours
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
        size = downloader.partial.stat().st_size if downloader.partial.exists() else 0
        raise InputError(
            f"{archive.url}: {_reason(error)}; wanted the complete file. "
            f"Run again: {f'it resumes after {size} bytes' if size else 'it retries'}"
        ) from None
    except ValueError as error:  # raised by pooch, which has deleted the file
        raise InputError(
            f"{archive.url}: {error} Run again to fetch the file again; if this repeats, the "
            "publisher has replaced it."
        ) from None
    algorithm, _, digest = (archive.known_hash or "").partition(":")
    if algorithm != "sha256":
        digest = pooch.file_hash(str(goal), alg="sha256")
    if archive.known_hash is None and on_message is not None:
        on_message(f"{archive.name}: SHA-256 {digest}; none is published, so it cannot be checked")
    verified = archive.known_hash is not None
    return Fetched(path=goal, sha256=digest, size=goal.stat().st_size, verified=verified)


def _reason(error: Exception) -> str:
    """Return the innermost cause of an exception of requests or urllib3, as text."""
    text = str(error).rpartition("(Caused by ")[2].rstrip(")")
    return f"{type(error).__name__}: {text[:200]}"


class _Resuming:
    """A downloader for pooch that resumes an interrupted transfer."""

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
        """Fetch ``url`` into ``output_file``."""
        have = self.partial.stat().st_size if self.partial.exists() else 0
        if not have or have != self.archive.size:
            with requests.Session() as session:
                # No content encoding: sizes and ranges must be those of the file itself.
                session.headers["Accept-Encoding"] = "identity"
                if not (have and self._resume(session, url, have)):
                    self._begin(session, url)
        self.partial.replace(output_file)

    def _resume(self, session: requests.Session, url: str, have: int) -> bool:
        """Append the missing bytes; return False if the server cannot resume a transfer."""
        headers = {"Range": f"bytes={have}-"}
        with session.get(url, headers=headers, stream=True, timeout=_TIMEOUT_S) as answer:
            content_range = answer.headers.get("Content-Range", "")
            if answer.status_code == 416:
                return content_range == f"bytes */{have}"  # True: the partial file is complete
            span = _SPAN.fullmatch(content_range)
            if answer.status_code != 206 or span is None or int(span[1]) != have:
                self._inform(f"{url}: the server does not resume; fetching the file again")
                return False
            total = None if span[2] == "*" else int(span[2])
            self._inform(f"{url}: resuming after {have} bytes")
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

    def _inform(self, text: str) -> None:
        if self._on_message is not None:
            self._on_message(text)

    def _save(self, answer: requests.Response, have: int, stated: int | None) -> None:
        """Append the body of a response to the ``have`` bytes that were fetched before.

        ``stated`` is the size of the complete file according to the server; if it is None, the
        published size is used. If neither is known, an interruption cannot be noticed here:
        extracting the archive then fails. Free disk space is checked during the transfer.
        """
        chunks: Iterator[bytes] = answer.raw.stream(_CHUNK, decode_content=False)
        first = next(chunks, b"")
        if not have:
            self._check_kind(answer, first)
        total = self._total(answer, have, stated)
        stage, done, checked = f"fetching {self.archive.name} (MB)", have, have
        with self.partial.open("ab" if have else "wb") as file:
            for chunk in chain([first], chunks):
                done += file.write(chunk)
                if total is None and done >= checked + _CHECK_EVERY:
                    checked = done
                    check_free_space(self.folder, UNPACKED * done, self.archive.name)
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

    def _total(self, answer: requests.Response, have: int, stated: int | None) -> int | None:
        """Return the size of the complete file, if known; check it and the free disk space."""
        if stated is not None and self.archive.size not in (None, stated):
            raise InputError(
                f"{answer.url}: has {stated} bytes, the published file {self.archive.size}; the "
                f"publisher has another file there now. Put the right one there: {self._goal}"
            )
        total = self.archive.size if stated is None else stated
        if total is not None:
            check_free_space(self.folder, total - have + UNPACKED * total, self.archive.name)
        return total

    def _check_kind(self, answer: requests.Response, first: bytes) -> None:
        """Raise if the response is not an archive but, for example, an error page."""
        magic = _MAGIC[Path(self.archive.name).suffix]
        if not first.startswith(magic):
            kind = answer.headers.get("Content-Type", "something")
            raise InputError(
                f"{answer.url}: sent {kind} that begins with {first[:24]!r}; wanted an archive, "
                f"which begins with {magic!r}. An error page of the server or of a proxy? "
                f"Try later, or put the file there by hand: {self._goal}"
            )
