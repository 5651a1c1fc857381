"""Runs that were never trained, of a few entries and a result."""

import json

import pytest


@pytest.fixture
def make_run(tmp_path):
    def make(entries, result=None, name="cached-tiny"):
        run = tmp_path / name
        run.mkdir()
        config = {"mode": "cached", "epochs": 50, "lr": 5e-4, "arch": {"name": "vgg11"}}
        (run / "config.json").write_text(json.dumps({"config": config, "grams": {}}))
        (run / "metrics.jsonl").write_text("".join(json.dumps(e) + "\n" for e in entries))
        if result is not None:
            (run / "result.json").write_text(json.dumps(result))
        return run

    return make
