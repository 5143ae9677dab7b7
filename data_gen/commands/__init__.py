"""The commands of `python -m data_gen`, one module each."""
