"""The process of a rank and its surroundings: launcher, MPI, collective helpers, clock, signals and hardware.

Rooms on higher floors may import it. A module about the process of a rank, the launcher that started it or
the node that it shares with other ranks belongs here; calls on windows belong to `hpc_dasgd.window`.
"""
