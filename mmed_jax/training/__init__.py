"""The training step and what stands round it: state, loss, optimizer, validation, numbers of a run."""
