"""Builds record sets from public data: convert, and whatever commands COMMANDS lists. Knows nothing of jax."""
