"""Tests of antigram."""
