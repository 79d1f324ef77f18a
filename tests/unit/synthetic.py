"""Synthetic asynchronous runs: a sequential simulator of ranks that read each other's contributions."""

from types import SimpleNamespace

import numpy as np


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
