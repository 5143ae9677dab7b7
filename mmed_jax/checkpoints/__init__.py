"""Checkpoints and the run directory that holds them."""
