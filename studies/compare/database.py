"""Store jobs and results of a comparison in one SQLite file, which processes may share."""

from __future__ import annotations

import io
import json
import os
import socket
import sqlite3
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from antigram.pipeline.errors import DamagedError
from antigram.studies.compare.jobs import Job

__all__ = ["Database"]

LEASE_S = 60  # a claim that was not renewed for so long is free
_WAIT_S = 30  # for another process's transaction
_TABLES = """
CREATE TABLE IF NOT EXISTS jobs (
    key TEXT PRIMARY KEY, kind TEXT, name TEXT, command TEXT,
    state TEXT NOT NULL DEFAULT 'new', owner TEXT, lease REAL, result TEXT, error TEXT, seconds REAL
);
CREATE TABLE IF NOT EXISTS predictions (
    key TEXT, split TEXT, arrays BLOB NOT NULL, PRIMARY KEY (key, split)
);
CREATE TABLE IF NOT EXISTS settings (name TEXT PRIMARY KEY, value TEXT NOT NULL);
"""


class Database:
    """Jobs, their results and the predictions of each training.

    An SQLite database with a write-ahead log: if a process is killed, all committed transactions
    survive, and an unfinished one is rolled back.

    Args:
        path: file of the database, which is created if it does not exist.

    Raises:
        DamagedError: the file is not a database, or is damaged.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.owner = _process(os.getpid())
        path.parent.mkdir(parents=True, exist_ok=True)
        with self._open() as database:
            database.executescript(_TABLES)

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        """Open a new connection for a transaction, as threads and forks may not share one."""
        connection = sqlite3.connect(self.path, timeout=_WAIT_S, isolation_level=None)
        try:
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute("PRAGMA synchronous=FULL")
            connection.execute("BEGIN IMMEDIATE")
            yield connection
            if connection.in_transaction:
                connection.execute("COMMIT")
        except sqlite3.DatabaseError as error:
            if isinstance(error, sqlite3.OperationalError) and "locked" in str(error):
                raise
            raise DamagedError(
                f"{self.path}: {error}. Delete it: finished runs and caches are used again."
            ) from None
        finally:
            connection.close()

    def add(self, jobs: Sequence[Job]) -> None:
        """Add new jobs; jobs that failed may be tried again."""
        with self._open() as database:
            database.executemany(
                "INSERT OR IGNORE INTO jobs (key, kind, name, command) VALUES (?, ?, ?, ?)",
                [(job.key, job.kind, job.name, " ".join(job.command)) for job in jobs],
            )
            keys = [(job.key,) for job in jobs]
            database.executemany(
                "UPDATE jobs SET state = 'new' WHERE key = ? AND state = 'failed'", keys
            )

    def forget(self, keys: Sequence[str]) -> None:
        """Mark finished jobs to be run again; their predictions stay until then."""
        with self._open() as database:
            database.executemany(
                "UPDATE jobs SET state = 'new' WHERE key = ? AND state = 'done'",
                [(key,) for key in keys],
            )

    def set(self, name: str, value: object) -> None:
        """Store a setting as JSON."""
        with self._open() as database:
            text = json.dumps(value)
            database.execute("INSERT OR REPLACE INTO settings VALUES (?, ?)", (name, text))

    def states(self) -> dict[str, str]:
        """Return the state of each job: ``new``, ``running``, ``done`` or ``failed``."""
        with self._open() as database:
            rows = database.execute("SELECT key, state, owner, lease FROM jobs").fetchall()
        return {
            key: "new" if state == "running" and not _is_held(owner, lease) else state
            for key, state, owner, lease in rows
        }

    def claim(self, key: str) -> bool:
        """Claim a job unless a living process has claimed it; return whether this succeeded."""
        with self._open() as database:
            found = database.execute(
                "SELECT state, owner, lease FROM jobs WHERE key = ?", (key,)
            ).fetchone()
            if found is None or found[0] in ("done", "failed"):
                return False
            if found[0] == "running" and _is_held(*found[1:]):
                return False
            database.execute(
                "UPDATE jobs SET state = 'running', owner = ?, lease = ? WHERE key = ?",
                (self.owner, time.time() + LEASE_S, key),
            )
        return True

    def renew(self) -> None:
        """Renew the claims of this process."""
        with self._open() as database:
            database.execute(
                "UPDATE jobs SET lease = ? WHERE state = 'running' AND owner = ?",
                (time.time() + LEASE_S, self.owner),
            )

    def release(self) -> None:
        """Release the jobs that this process has claimed but not finished."""
        with self._open() as database:
            database.execute(
                "UPDATE jobs SET state = 'new' WHERE state = 'running' AND owner = ?", (self.owner,)
            )

    def finish(
        self,
        key: str,
        result: Mapping[str, Any],
        seconds: float,
        predictions: Mapping[str, Mapping[str, NDArray[Any]]],
    ) -> None:
        """Mark a job as done and store its result and predictions, in one transaction.

        Args:
            key: key of the job.
            result: answer of the job's command.
            seconds: duration of the job.
            predictions: split -> arrays by name.
        """
        packed = []
        for split, arrays in predictions.items():
            file = io.BytesIO()
            np.savez_compressed(file, allow_pickle=False, **arrays)
            packed.append((key, split, file.getvalue()))
        with self._open() as database:
            database.executemany("INSERT OR REPLACE INTO predictions VALUES (?, ?, ?)", packed)
            database.execute(
                "UPDATE jobs SET state = 'done', result = ?, seconds = ?, error = NULL "
                "WHERE key = ?",
                (json.dumps(result), seconds, key),
            )

    def fail(self, key: str, error: str) -> None:
        """Mark a job as failed, with the reason."""
        with self._open() as database:
            database.execute(
                "UPDATE jobs SET state = 'failed', error = ? WHERE key = ?", (error, key)
            )

    def result(self, key: str) -> tuple[dict[str, Any], float]:
        """Return result and duration of a finished job."""
        with self._open() as database:
            text, seconds = database.execute(
                "SELECT result, seconds FROM jobs WHERE key = ?", (key,)
            ).fetchone()
        return json.loads(text), float(seconds)

    def predictions(self, key: str, split: str) -> dict[str, NDArray[Any]]:
        """Return the arrays of a training's predictions on a split."""
        with self._open() as database:
            (blob,) = database.execute(
                "SELECT arrays FROM predictions WHERE key = ? AND split = ?", (key, split)
            ).fetchone()
        with np.load(io.BytesIO(blob), allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}


def _process(pid: int) -> str:
    """Return a unique name of a process: host, pid and the time when it began."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
        began = text.rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        began = "gone"
    return f"{socket.gethostname()}:{pid}:{began}"


def _is_held(owner: str, lease: float) -> bool:
    """Whether the process that claimed a job may still be running it."""
    host, pid, _ = owner.split(":")
    if host == socket.gethostname():
        return _process(int(pid)) == owner
    return time.time() < lease
