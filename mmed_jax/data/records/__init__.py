"""Records: what one is, where they lie, how they are read, split and mixed."""
