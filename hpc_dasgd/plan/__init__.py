"""Simulation of a run before node hours are spent: throughput, staleness and a safe stepsize. No MPI.

The command line imports it. `times` has the inputs, `simulate` the events, `planning` the result.
"""
