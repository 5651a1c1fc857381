"""Run the demo in a fresh workspace and save its table: ``python -m benchmarks.demo``."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from antigram.studies.demo import table
from benchmarks.record import save


def main() -> None:
    """Run the demo, print its table, and save it."""
    with tempfile.TemporaryDirectory() as folder:
        place, report = Path(folder) / "workspace", Path(folder) / "report.html"
        command = [sys.executable, "cli.py", "--workspace", str(place), "--json"]
        command += ["demo", "--report", str(report)]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    content = json.loads(done.stdout)
    print(table(content))
    arms = {
        name: {
            key: result[key]
            for key in (
                "accuracy",
                "unweighted_average_recall",
                "seconds_per_step",
                "clips_per_second",
                "data_wait_fraction",
                "peak_rss_mb",
                "epochs",
                "best_epoch",
                "parameters",
            )
        }
        for name, result in content["arms"].items()
    }
    stages = [s["seconds"] for s in content["stages"]]
    kept = {"arms": arms, "cache_bytes": content["cache_bytes"], "stage_seconds": stages}
    print(json.dumps(kept))
    print(save("demo", {**kept, "clips": content["store"]["clips"], "seconds": content["seconds"]}))


if __name__ == "__main__":
    main()
