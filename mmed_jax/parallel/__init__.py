"""Processes and devices: start, barriers, peers, preemption, mesh and sharding, compiler flags."""
