"""Compiled programs read as text: loops, FLOPs, collectives."""
