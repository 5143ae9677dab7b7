"""Llama-3 in Flax NNX: configuration, layers, attention, rematerialisation."""
