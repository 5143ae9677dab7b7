"""Training recipes: one module per stage, each with get_config(variant)."""
