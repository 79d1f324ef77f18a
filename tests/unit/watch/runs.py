"""Runs for the tests of ``watch``: files written by `tests.unit.synthetic`, and their status."""

import os

from hpc_dasgd.watch.watcher import Watcher
from tests.unit import synthetic

BUDGET = "[budget]\ngradients = 1000\nseconds = 900\ntarget_loss = 0.125\n"
EVALUATIONS = [(1.0, 10, 0.75, 0.5), (2.0, 20, 0.25, 0.875)]
WRITTEN_S = 1e9


def write_run(directory, n_ranks=3, every=1, seed=1, n_gradients=300, summary=None):
    """Write the files of a run, modified at `WRITTEN_S`; return its schedule."""
    run = synthetic.schedule(n_ranks, n_gradients, seed=seed)
    synthetic.write_run(directory, run, every, config=BUDGET, evaluations=EVALUATIONS, summary=summary)
    for path in directory.iterdir():
        os.utime(path, (WRITTEN_S, WRITTEN_S))
    return run


def read_status(directory, now_s=WRITTEN_S + 1):
    with Watcher(directory) as watcher:
        return watcher.read_status(now_s)
