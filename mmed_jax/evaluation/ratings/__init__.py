"""Rationales rated by people and by a judge model."""
