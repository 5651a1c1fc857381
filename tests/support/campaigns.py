"""Record the outcomes of campaigns of damage, from which docs/reliability.md is written."""

from __future__ import annotations

import json

from filelock import FileLock

from benchmarks.record import RESULTS, machine
from benchmarks.tables import reliability_page

__all__ = ["keep"]

_PATH = RESULTS / "reliability.json"


def keep(campaign: str, *, kind: str, test: str, **counts: int) -> None:
    """Record the outcome of a campaign; it replaces an earlier outcome of the same campaign.

    Args:
        campaign: text that says what was damaged, and how.
        kind: ``kills``, ``flips``, ``faults`` or ``hostile``.
        test: test that runs the campaign again.
        counts: number of cases ``tried``, and number of cases with each outcome.
    """
    with FileLock(_PATH.with_suffix(".lock")):
        known = json.loads(_PATH.read_text()) if _PATH.exists() else {"campaigns": {}}
        known["machine"] = here = machine()
        entry = {"kind": kind, "test": test, **counts, "commit": here["commit"]}
        known["campaigns"] = dict(sorted({**known["campaigns"], campaign: entry}.items()))
        _PATH.write_text(json.dumps(known, indent=2) + "\n")
        (RESULTS.parents[1] / "docs" / "reliability.md").write_text(reliability_page())
    _PATH.with_suffix(".lock").unlink(missing_ok=True)
