"""Studies: arms of ordinary commands that are compared, run step by step, and one page about what came of it."""
