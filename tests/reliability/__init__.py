"""Campaigns of damage: single-bit flips in every kind of file, kills before file-system calls."""
