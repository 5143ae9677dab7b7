"""From what a model wrote to option letters."""
