"""Corpora for continued pretraining: units, stages that can be killed, filters; `python -m data_gen corpus`.

What this room imports of the extra `corpus` (datatrove and others) it imports inside functions or in files of a stage's
work, so that `python -m data_gen --help` runs without it (requirements.py beside this file names what is missing).
"""
