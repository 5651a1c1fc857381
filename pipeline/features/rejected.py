"""Recordings and segments that cannot be used: a table of them, and a limit to their number."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from antigram.pipeline.errors import InputError
from antigram.pipeline.features.listing import Reject
from antigram.pipeline.table import csv_table

__all__ = ["check_rejected", "list_rejected"]


def list_rejected(store: Path, unpublished: Path, rejected: Sequence[Reject]) -> None:
    """Write ``NAME.rejected.csv`` beside a store; if nothing was rejected, delete this table.

    Args:
        store: path of the store, ``NAME.zarr``.
        unpublished: path under which the table is written, in the same file system.
        rejected: recordings and segments that cannot be used.
    """
    table = store.with_name(store.name.removesuffix(".zarr") + ".rejected.csv")
    if not rejected:
        table.unlink(missing_ok=True)
        return
    with csv_table(unpublished, ("source", "reason")) as add:
        for reject in rejected:
            add((reject.source, reject.reason))
    unpublished.replace(table)


def check_rejected(corpus: str, rejected: Sequence[Reject], most: int) -> None:
    """Raise if there are more unusable recordings and segments than are allowed.

    Args:
        corpus: name of the corpus, for the message.
        rejected: recordings and segments that cannot be used.
        most: how many are allowed.

    Raises:
        InputError: there are more; the message names the first ones.
    """
    if len(rejected) > most:
        first = "; ".join(f"{r.source}: {r.reason}" for r in rejected[:3])
        more = f"; and {len(rejected) - 3} more" if len(rejected) > 3 else ""
        raise InputError(
            f"{corpus}: {len(rejected)} unusable recordings or segments, {most} allowed: "
            f"{first}{more}. Repair or remove them, or leave them out with "
            f"`max_rejected={len(rejected)}`."
        )
