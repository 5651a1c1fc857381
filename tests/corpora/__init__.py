"""Tests of the corpus adapters, one file for each."""
