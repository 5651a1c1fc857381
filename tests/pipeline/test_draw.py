from __future__ import annotations

import hashlib

import numpy as np

from antigram.pipeline.draw import draw


def test_numbers_are_cut_from_sha256():
    raw = hashlib.sha256(b"7\0snr\0clip").digest()
    assert draw(7, "snr", "clip", 4) == [int(n) for n in np.frombuffer(raw, "<u8")]


def test_seed_purpose_and_name_each_matter():
    assert len({draw(s, p, n)[0] for s in (0, 1) for p in "ab" for n in ("x", "y")}) == 8


def test_numbers_are_uniform():
    drawn = np.array([draw(0, "test", str(n), 4) for n in range(2_000)], np.float64) / 2**64
    counts = np.histogram(drawn, bins=10, range=(0, 1))[0]
    assert np.abs(counts - 800).max() < 5 * np.sqrt(800)
