"""Tokenizers of model folders and of the formats that came before."""
