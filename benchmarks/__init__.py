"""Measurements: each prints a table, then one JSON line, and can leave it in results/."""
