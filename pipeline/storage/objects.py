"""The object store backend: S3 and what speaks its protocol, Google Cloud Storage, Azure.

An address is text such as ``s3://bucket/prefix/NAME.zarr``; as a `Path` it would lose a slash.
Credentials and endpoint come from the environment (``AWS_ACCESS_KEY_ID``, ``AWS_ENDPOINT_URL``).
The package obstore does the requests. Its threads do not survive a fork, so a forked process may
not use it; antigram's own workers are not forked from the process that reads.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import numpy as np
from numpy.typing import NDArray

from antigram.pipeline.errors import InputError
from antigram.pipeline.storage.backend import (
    MOST_DOCUMENT,
    ChangedError,
    Entry,
    RowLayout,
    WrongSizeError,
)

if TYPE_CHECKING:
    from obstore.store import ObjectStore

__all__ = ["Objects", "is_address"]

T = TypeVar("T")

_ADDRESS = re.compile(r"(s3|gs|az)://([^/\s]+)(?:/(\S*))?")
_SCHEME = re.compile(r"(?:s3|gs|az):/")
_CONNECT_S = 5
_RETRIES: Any = {"max_retries": 5, "retry_timeout": timedelta(seconds=60)}


def is_address(text: object) -> bool:
    """Whether a text is the address of an object store; a `Path` of one counts, but is refused."""
    return _SCHEME.match(str(text)) is not None


@dataclass(frozen=True, slots=True)
class Objects:
    """A `Backend` of the objects below an address; `put_new` writes objects that do not exist.

    It can be pickled: each process opens its own connections.

    Attributes:
        address: ``s3://bucket/prefix``, without a slash at the end.
    """

    address: str

    @classmethod
    def at(cls, address: str) -> Objects:
        """Return the backend of an address, without a request.

        Raises:
            InputError: the text is no address, or obstore is not installed.
        """
        match = _ADDRESS.fullmatch(address)
        parts = (match[3] or "").rstrip("/").split("/") if match else ["."]
        if parts != [""] and any(part in ("", ".", "..") for part in parts):
            raise InputError(
                f"{address}: not the address of an object store, such as s3://bucket/prefix/NAME"
            )
        objects = cls(address.rstrip("/"))
        objects._opened()
        return objects

    def get(self, key: str) -> bytes:
        """Return the bytes of an object; see `Reader`."""
        import obstore

        def read() -> bytes:
            result = obstore.get(self._opened(), key)
            if result.meta["size"] > MOST_DOCUMENT:
                raise OSError(27, f"larger than {MOST_DOCUMENT >> 20} MiB", self.where(key))
            return bytes(result.bytes())

        return self._asked(key, read)

    def view(self, key: str, start: int = 0, stop: int | None = None) -> NDArray[np.uint8]:
        """Download bytes of an object; see `Viewer`."""
        import obstore

        store = self._opened()
        if start == 0 and stop is None:
            return _array(self._asked(key, lambda: obstore.get(store, key).bytes()))
        size = self._asked(key, lambda: obstore.head(store, key)["size"])
        first, last, _ = slice(start, stop).indices(size)
        if first >= last:  # a request for no byte is refused
            return _array(b"")
        return _array(
            self._asked(key, lambda: obstore.get_range(store, key, start=first, end=last))
        )

    def view_rows(
        self, name: str, keys: Sequence[str], layout: RowLayout, *, mapped: bool = True
    ) -> ReadObjects:
        """Return rows that each call downloads; see `RowViewer`."""
        return ReadObjects(self, keys, layout)

    def head(self, key: str) -> Entry | None:
        """Return size and entity tag of an object; see `Header`."""
        import obstore

        try:
            meta = self._asked(key, lambda: obstore.head(self._opened(), key))
        except OSError:
            return None
        return Entry(key, meta["size"], meta["e_tag"])

    def list(self) -> Iterator[Entry]:
        """Yield all objects; see `Lister`. A thousand objects are one request."""
        import obstore

        def read() -> list[Entry]:
            return [
                Entry(meta["path"], meta["size"], meta["e_tag"])
                for metas in obstore.list(self._opened(), chunk_size=1000)
                for meta in metas
            ]

        yield from sorted(self._asked("", read), key=lambda entry: entry.key.split("/"))

    def groups(self) -> Sequence[str]:
        """Return the names before the first slash of all keys; see `Grouped`."""
        import obstore

        found = self._asked("", lambda: obstore.list_with_delimiter(self._opened()))
        return sorted(prefix.rstrip("/") for prefix in found["common_prefixes"])

    def below(self, name: str) -> Objects:
        """Return the backend of a prefix; see `Grouped`."""
        return Objects(f"{self.address}/{name}")

    def reopened(self) -> Objects:
        """Return this backend, as each request reads the present object; see `Grouped`."""
        return self

    def where(self, key: str = "") -> str:
        """Return the address of an object; see `Grouped`."""
        return f"{self.address}/{key}".rstrip("/")

    def put_new(self, key: str, raw: bytes) -> bool:
        """Write an object unless one of this key exists (If-None-Match); return if it was written.

        An answer may be lost after the object was written, and the request then repeated: the
        repetition finds the object of its own. So an existing object of the same bytes counts as
        written.
        """
        import obstore
        from obstore.exceptions import AlreadyExistsError, PreconditionError

        def write() -> bool:
            try:
                obstore.put(self._opened(), key, raw, mode="create", use_multipart=False)
            except (AlreadyExistsError, PreconditionError):
                return False
            return True

        return self._asked(key, write) or self.get(key) == raw

    def _opened(self) -> ObjectStore:
        return _open(self.address, os.environ.get("AWS_ENDPOINT_URL", ""), os.getpid())

    def _asked(self, key: str, request: Callable[[], T]) -> T:
        """Return the result of a request; its errors become antigram's."""
        from obstore.exceptions import BaseError

        try:
            return request()
        except FileNotFoundError as error:
            if "NoSuchBucket" in str(error):
                self._fail(error)
            raise FileNotFoundError(2, "there is no such object", self.where(key)) from None
        except (BaseError, PermissionError) as error:
            self._fail(error)

    def _fail(self, error: Exception) -> NoReturn:
        text = str(error)
        endpoint = os.environ.get("AWS_ENDPOINT_URL") or "the provider's endpoint"
        if "NoSuchBucket" in text or "ContainerNotFound" in text:
            why = f"{endpoint} has no such bucket. Create it, or correct the address"
        elif re.search(r"\b40[13]\b|Unauthenticated|PermissionDenied|169\.254\.169\.254", text):
            why = (
                "access was refused, or there are no credentials. Set AWS_ACCESS_KEY_ID and "
                "AWS_SECRET_ACCESS_KEY (or GOOGLE_*, AZURE_*) of a user who may use the bucket"
            )
        elif "HTTP error" in text:
            why = f"{endpoint} does not answer. Check AWS_ENDPOINT_URL and the network"
        else:
            why = f"the request failed ({text.partition('Debug source')[0].strip()[:300]})"
        raise InputError(f"{self.address}: {why}.") from None


class ReadObjects:
    """A `RowView` of objects that each call downloads, for checks and samples.

    A training should read a local copy: see `pipeline.storage.local_copy`.

    Args:
        objects: the backend.
        keys: keys of the objects.
        layout: layout of each object.
    """

    table = None
    apart = 0

    def __init__(self, objects: Objects, keys: Sequence[str], layout: RowLayout) -> None:
        self._objects, self._keys, self._layout = objects, keys, layout
        self._noted: dict[int, object] = {}  # entity tags

    def open(self, index: int) -> None:
        """Note an object and check its size; see `RowView`."""
        if index in self._noted:
            return
        if (entry := self._objects.head(key := self._keys[index])) is None:
            raise FileNotFoundError(2, "there is no such object", self._objects.where(key))
        if entry.size != self._layout.size:
            raise WrongSizeError(entry.size)
        self._noted[index] = entry.identity

    def expect(self, index: int, first: int, size: int) -> None:
        """Do nothing, as nothing is kept; see `RowView`."""

    def fetch(self, index: int) -> None:
        """Do nothing, as nothing is kept; see `RowView`."""

    def part(self, index: int) -> NDArray[np.uint8]:
        """Download the rows of an object, and note it as it is now; see `RowView`."""
        raw, identity = self._download(index)
        self._noted[index] = identity
        return raw[: self._layout.data]

    def read(self, index: int, offsets: NDArray[np.int64], size: int) -> NDArray[np.uint8]:
        """Download an object that is as it was noted, and return some bytes; see `RowView`."""
        raw, identity = self._download(index)
        if identity != self._noted.get(index):
            raise ChangedError(self._objects.where(self._keys[index]))
        pieces: NDArray[np.uint8] = raw[offsets[:, None] + np.arange(size)]
        return pieces

    def look(self, chosen: Sequence[int], intact: Callable[[int], bool]) -> list[str]:
        """Do nothing, as each read compares the object with what was noted; see `RowView`."""
        return []

    def _download(self, index: int) -> tuple[NDArray[np.uint8], object]:
        import obstore

        objects, key = self._objects, self._keys[index]

        def read() -> tuple[NDArray[np.uint8], object]:
            result = obstore.get(objects._opened(), key)
            return _array(result.bytes()), result.meta["e_tag"]

        raw, identity = objects._asked(key, read)
        if raw.size != self._layout.size:
            raise WrongSizeError(raw.size)
        return raw, identity


def _array(raw: Any) -> NDArray[np.uint8]:  # noqa: ANN401 - obstore's buffer, or bytes
    """Return a buffer as an array that cannot be written to, without a copy."""
    array = np.frombuffer(raw, np.uint8)
    array.flags.writeable = False
    return array


_FIRST: list[int] = []  # the process that used obstore first: this one, unless it was forked


@cache
def _open(address: str, endpoint: str, process: int) -> ObjectStore:
    """Return obstore's object of an address.

    Raises:
        InputError: obstore is not installed, or refuses the address or the environment.
    """
    try:
        from obstore.exceptions import BaseError
        from obstore.store import from_url
    except ModuleNotFoundError:
        raise InputError(
            f"{address}: object stores need the package obstore: pip install 'antigram[s3]'"
        ) from None
    if _FIRST and _FIRST[0] != process:
        raise RuntimeError("a forked process cannot use the object store that its parent has used")
    _FIRST[:] = [process]
    options: Any = {
        "allow_http": endpoint.startswith("http://"),
        "connect_timeout": timedelta(seconds=_CONNECT_S),
    }
    try:
        store: ObjectStore = from_url(address, client_options=options, retry_config=_RETRIES)
    except (BaseError, ValueError) as error:
        raise InputError(f"{address}: {str(error).splitlines()[0]}") from None
    return store
