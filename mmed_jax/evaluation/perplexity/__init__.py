"""Loss, perplexity and bits per byte of held-out texts."""
