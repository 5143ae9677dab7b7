"""Runs on TPU VM slices: ask for them, start one command on every worker, watch it until it is done.

`python -m scripts.pod --help`; docs/pods.md.
"""
