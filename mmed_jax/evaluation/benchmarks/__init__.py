"""Benchmarks: declared, found, read, selected, listed."""
