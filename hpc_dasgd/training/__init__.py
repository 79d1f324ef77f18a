"""Training: set-up, the loop of one rank, and what is written at the end.

The command line and `hpc_dasgd.plan` import it. `setup` prepares a session, `loop` is the algorithm, and each thing
that happens beside a step (evaluation, checkpoints, exchange interval, progress) is an object in a module of its own.
"""
