"""Run the demo in a fresh workspace and save its table: ``python -m benchmarks.demo``."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from antigram.studies.compare.texts import compared_text
from benchmarks.record import save


def main() -> None:
    """Run the demo, print its table, and save it."""
    with tempfile.TemporaryDirectory() as folder:
        place, report = Path(folder) / "workspace", Path(folder) / "report.html"
        command = [sys.executable, "cli.py", "--workspace", str(place), "--json"]
        command += ["demo", "--report", str(report)]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    content = json.loads(done.stdout)
    print(compared_text(content))
    kept = {key: content[key] for key in ("arms", "jobs", "chance", "seconds")}
    print(json.dumps(kept))
    print(save("demo", kept))


if __name__ == "__main__":
    main()
