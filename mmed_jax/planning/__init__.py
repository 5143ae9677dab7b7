"""What a training step will need and take on hardware that is not there: memory, FLOPs, traffic and time.

The compiler for TPUs runs on any machine (package libtpu). From its optimised program come exact FLOPs, bytes and
memory; times are estimates. Nothing here imports jax when it is imported.
"""
