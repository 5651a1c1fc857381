"""Benchmarks: each prints a table, then one JSON line, and can save the result in results/."""
