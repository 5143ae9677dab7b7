"""Metrics: accuracy, intervals, similarity of texts."""
