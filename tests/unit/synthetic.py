"""Synthetic asynchronous runs: a sequential simulator of ranks that read each other, and the files of one."""

from types import SimpleNamespace

import numpy as np

from hpc_dasgd.ranklog import RankLog
from hpc_dasgd.runfile import complete_run, create_run
from hpc_dasgd.staleness import measure
from hpc_dasgd.versions import causal_order

STEPSIZE = 0.1
X0 = np.arange(6, dtype=np.float32)


def schedule(n_ranks, n_steps, seed=0, read_chance=0.5):
    """Simulate `n_steps` gradients on `n_ranks` ranks that read each other at random.

    Returns lists by rank of ``start``, ``end`` (float64) and ``versions`` (uint32), and ``held``, by
    rank and gradient the set of ``(rank, index)`` the replica held, the reference for staleness.
    """
    rng = np.random.default_rng(seed)
    speed = rng.uniform(0.5, 1.5, n_ranks)
    done = [0] * n_ranks
    seen = np.zeros((n_ranks, n_ranks), dtype=np.uint32)
    ready_s = [0.0] * n_ranks
    running = {}
    start, end, versions, held = ([[] for _ in range(n_ranks)] for _ in range(4))
    for _ in range(n_steps):
        for rank in set(range(n_ranks)) - set(running):
            read = rng.random(n_ranks) < read_chance
            seen[rank, read] = np.array(done, dtype=np.uint32)[read]
            seen[rank, rank] = done[rank]
            running[rank] = (ready_s[rank] + rng.exponential(speed[rank]), seen[rank].copy())
        rank = min(running, key=lambda r: running[r][0])
        finished_s, vector = running.pop(rank)
        start[rank].append(ready_s[rank])
        end[rank].append(finished_s)
        versions[rank].append(vector)
        held[rank].append({(j, k) for j in range(n_ranks) for k in range(vector[j])})
        done[rank] += 1
        ready_s[rank] = finished_s
    return SimpleNamespace(
        start=[np.array(s) for s in start],
        end=[np.array(e) for e in end],
        versions=[np.array(v, dtype=np.uint32).reshape(-1, n_ranks) for v in versions],
        held=held,
        n_ranks=n_ranks,
    )


def measured(run, every=1):
    """The staleness of a schedule of which every `every`-th vector is known."""
    versions = [vectors[::every] for vectors in run.versions]
    return measure(run.start, causal_order(run.end, versions, every), versions, every)


def write_run(
    directory,
    run,
    every=1,
    *,
    config="",
    attributes=None,
    shapes=None,
    loss=lambda rank, k: rank + k / 1000,
    evaluations=(),
    summary=None,
):
    """Write the files of a schedule, completed where a `summary` is given; losses tell gradients apart."""
    attributes = {"n_ranks": run.n_ranks} | (attributes or {})
    create_run(directory, config_toml=config, attributes=attributes, x0=X0, parameter_shapes=shapes)
    for rank in range(run.n_ranks):
        with RankLog(directory, rank, run.n_ranks, every) as log:
            for k, vector in enumerate(run.versions[rank]):
                log.append(run.start[rank][k], run.end[rank][k], loss(rank, k), 10 + k, k, vector, STEPSIZE)
            for evaluation in evaluations if rank == 0 else ():
                log.append_evaluation(*evaluation)
    if summary is not None:
        complete_run(directory, final=X0 + 1, attributes=summary)
    return directory
