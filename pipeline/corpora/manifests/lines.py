"""Read large text files of a manifest line by line: plain or gzip, JSON lines, one JSON object.

A manifest may have millions of lines, so no file is held in memory. Every message names the file
and the line.
"""

from __future__ import annotations

import gzip
import json
import math
import zlib
from codecs import getincrementaldecoder
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path
from typing import Any

from antigram.pipeline.corpus import CorpusError
from antigram.pipeline.storage.regular import open_regular

__all__ = ["json_lines", "json_members", "number", "numbered_lines", "text"]

_MOST = 16 << 20  # characters of a line, or of a member of a JSON object
_PART = 1 << 20  # characters read at once
_BLANKS = " \t\r\n"


def numbered_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yield number, from 1, and text of each line, without its end.

    Raises:
        CorpusError: the file is not a regular file, its gzip is damaged, it is not UTF-8, or a line
            is too long.
    """
    count = 0
    with _opened(path, lambda: count + 1) as file:
        while data := file.readline(_MOST + 1):
            count += 1
            if len(data) > _MOST:
                raise CorpusError(f"{path}:{count}: a line of more than {_MOST >> 20} MB")
            try:
                content = data.decode("utf-8-sig" if count == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise _not_utf8(path, count, data, error) from None
            yield count, content.rstrip("\r\n")


@contextmanager
def _opened(path: Path, line: Callable[[], int]) -> Iterator[BufferedReader | gzip.GzipFile]:
    """Open a plain or gzip file; raise CorpusError, with the line now read, if it is damaged."""
    try:
        with open_regular(path) as plain, _unzipped(plain) as file:
            yield file
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise CorpusError(
            f"{path}:{line()}: its gzip is damaged or truncated here: {error}"
        ) from None
    except OSError as error:
        raise CorpusError(f"{path}: cannot be read: {error.strerror}") from None


def _unzipped(file: BufferedReader) -> BufferedReader | gzip.GzipFile:
    """Return a file as it is, or unzipped if it begins like gzip; its name does not matter."""
    return gzip.GzipFile(fileobj=file) if file.peek(2)[:2] == b"\x1f\x8b" else file


def _not_utf8(path: Path, line: int, data: bytes, error: UnicodeDecodeError) -> CorpusError:
    """Return the error for bytes, the beginning of a line, that are not UTF-8."""
    column = len(data[: error.start].decode("utf-8", "replace")) + 1
    return CorpusError(
        f"{path}:{line}:{column}: byte 0x{data[error.start]:02x} is not UTF-8; wanted UTF-8 "
        "text: save the file again as UTF-8"
    )


def json_lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield number and object of each line that holds JSON; blank lines are left out.

    Raises:
        CorpusError: as for `numbered_lines`, or a line is not a JSON object.
    """
    for line, content in numbered_lines(path):
        if not content.strip():
            continue
        try:
            record = json.loads(content)
        except (ValueError, RecursionError) as error:
            raise CorpusError(f"{path}:{line}: not JSON: {_reason(error)}") from None
        if not isinstance(record, dict):
            raise CorpusError(f"{path}:{line}: wanted a JSON object, with {{}}, on each line")
        yield line, record


def json_members(path: Path) -> Iterator[tuple[int, str, dict[str, Any]]]:
    """Yield line, key and object of each member of a JSON object whose members are objects.

    The file is parsed member by member. A key that occurs twice is yielded twice.

    Raises:
        CorpusError: as for `numbered_lines`, or the file is not such an object.
    """
    text = _Text(path)
    if text.next() != "{":
        raise text.error('wanted one JSON object, {"ID": {...}, ...}')
    text.at += 1
    if text.next() == "}":
        text.at += 1
    else:
        while True:
            text.next()
            line, key = text.line(), text.value()
            if not isinstance(key, str) or text.next() != ":":
                raise text.error('wanted "ID": {...}')
            text.at += 1
            value = text.value()
            if not isinstance(value, dict):
                raise CorpusError(
                    f"{path}:{line}: {key!r} is {value!r:.40}; wanted an object, {{}}"
                )
            yield line, key, value
            end = text.next()
            text.at += 1
            if end == "}":
                break
            if end != ",":
                text.at -= 1
                raise text.error("wanted , or } after an object")
    if text.next():
        raise text.error("text after the end of the object")


class _Text:
    """A window on a JSON file that moves forward; the file may be one long line.

    Attributes:
        at: position in the window.
    """

    def __init__(self, path: Path) -> None:
        self._path, self._parts = path, self._read()
        self._window, self.at = "", 0
        self._line, self._counted = 1, 0  # line of the position up to which lines were counted

    def _read(self) -> Iterator[str]:
        decoder, line = getincrementaldecoder("utf-8-sig")(), 1
        with _opened(self._path, lambda: line) as file:
            while True:
                data = file.read(_PART)
                try:
                    part = decoder.decode(data, final=not data)
                except UnicodeDecodeError as error:
                    before = error.object[: error.start]
                    begun = before.rfind(b"\n") + 1
                    line += before.count(b"\n")
                    start = UnicodeDecodeError(
                        "utf-8", error.object[begun:], error.start - begun, error.end, error.reason
                    )
                    raise _not_utf8(self._path, line, error.object[begun:], start) from None
                if not data:
                    return
                line += part.count("\n")
                yield part

    def _more(self) -> bool:
        """Drop what was passed, and read some more; return whether there was more."""
        self.line()
        part = next(self._parts, "")
        self._window, self.at = self._window[self.at :] + part, 0
        self._counted = 0
        return part != ""

    def line(self) -> int:
        """Return the line of the position."""
        self._line += self._window.count("\n", self._counted, self.at)
        self._counted = self.at
        return self._line

    def next(self) -> str:
        """Return the next character that is not a blank, without passing it; '' at the end."""
        while True:
            while self.at < len(self._window):
                if self._window[self.at] not in _BLANKS:
                    return self._window[self.at]
                self.at += 1
            if not self._more():
                return ""

    def value(self) -> object:
        """Return the next value, a text or an object, and pass it."""
        self.next()
        while True:
            try:
                value, self.at = _DECODER.raw_decode(self._window, self.at)
            except (ValueError, RecursionError) as error:
                line = self.line()
                if isinstance(error, json.JSONDecodeError):
                    line += self._window.count("\n", self.at, error.pos)
                # Perhaps the window ends within the value.
                if len(self._window) - self.at <= _MOST and self._more():
                    continue
                raise CorpusError(f"{self._path}:{line}: not JSON: {_reason(error)}") from None
            return value

    def error(self, reason: str) -> CorpusError:
        """Return an error at the position."""
        return CorpusError(f"{self._path}:{self.line()}: {reason}")


_DECODER = json.JSONDecoder()


def _reason(error: Exception) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg}, column {error.colno}"
    return "nested too deeply" if isinstance(error, RecursionError) else str(error)


def text(record: dict[str, Any], key: str, where: str) -> str:
    """Return a text of a JSON record; a whole number counts as text.

    Raises:
        CorpusError: it is missing, empty or of another type.
    """
    value = record.get(key)
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str) or not value:
        raise CorpusError(f"{where}: {key} is {value!r:.40}; wanted text")
    return value


def number(record: dict[str, Any], key: str, where: str) -> float:
    """Return a finite number of a JSON record.

    Raises:
        CorpusError: it is missing, NaN, infinite or of another type.
    """
    value = record.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise CorpusError(f"{where}: {key} is {value!r:.40}; wanted a number of seconds")
    return float(value)
