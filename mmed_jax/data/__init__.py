"""Records, tokenizer, chat rendering, packing and loading. Imports no jax."""
