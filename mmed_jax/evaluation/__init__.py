"""Benchmarks: prompts, answer extraction, scores."""
