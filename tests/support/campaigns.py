"""Keep what campaigns of damage came to, and write docs/reliability.md, which is made from it."""

from __future__ import annotations

import json

from filelock import FileLock

from benchmarks.record import RESULTS, machine
from benchmarks.tables import reliability_page

__all__ = ["keep"]

_PATH = RESULTS / "reliability.json"


def keep(campaign: str, *, kind: str, test: str, **counts: int) -> None:
    """Note the outcome of a campaign, in place of an earlier one's of the same name.

    Args:
        campaign: what was done to what.
        kind: ``kills``, ``flips``, ``faults`` or ``hostile``.
        test: what runs it again.
        counts: ``tried``, and what became of them.
    """
    with FileLock(_PATH.with_suffix(".lock")):
        known = json.loads(_PATH.read_text()) if _PATH.exists() else {"campaigns": {}}
        known["machine"] = here = machine()
        entry = {"kind": kind, "test": test, **counts, "commit": here["commit"]}
        known["campaigns"] = dict(sorted({**known["campaigns"], campaign: entry}.items()))
        _PATH.write_text(json.dumps(known, indent=2) + "\n")
        (RESULTS.parents[1] / "docs" / "reliability.md").write_text(reliability_page())
    _PATH.with_suffix(".lock").unlink(missing_ok=True)
