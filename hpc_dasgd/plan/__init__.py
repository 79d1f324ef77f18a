"""Simulation of a run before node hours are spent: throughput, staleness and a safe stepsize. No MPI.

Only the command line imports it. `times` provides the times of a step, `simulate` computes the events of a run (with
`cores` for processes, `publications` for overlays and `reach` for ``W_max``), and `planning` derives the results. A new
result is added to `planning`, and a new part of the model of a machine to `simulate` or a module that it uses.
"""
