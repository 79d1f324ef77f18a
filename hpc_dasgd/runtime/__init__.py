"""This process and its neighbours: launcher, MPI, collective helpers, clock, signals, hardware.

Every room above `arrays` may import it. What a rank must know about the process it runs in, the launcher that started
it or the node it shares with other ranks goes here; calls that work on windows belong to `hpc_dasgd.window`.
"""
