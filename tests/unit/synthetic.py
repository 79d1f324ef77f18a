"""Synthetic asynchronous runs: a sequential simulator of ranks that read each other, and writing of its files."""

from types import SimpleNamespace

import numpy as np

from hpc_dasgd.storage.layout import generation_directory
from hpc_dasgd.storage.log_segment import LogSettings
from hpc_dasgd.storage.log_writer import RankLog
from hpc_dasgd.storage.run_file import complete_run, create_run
from hpc_dasgd.theory.staleness import measure
from hpc_dasgd.theory.version_vectors import causal_order

STEPSIZE = 0.1
X0 = np.arange(6, dtype=np.float32)


def schedule(n_ranks, n_steps, seed=0, read_chance=0.5):
    """Simulate `n_steps` gradients on `n_ranks` ranks that read each other at random.

    Returns lists by rank of ``start``, ``end`` (float64) and ``versions`` (uint32), and ``held``, by
    rank and gradient the set of ``(rank, index)`` in the replica, the reference for staleness.
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
    """Return the staleness of a schedule with version vectors of every `every`-th gradient."""
    versions = [vectors[::every] for vectors in run.versions]
    return measure(run.start, causal_order(run.end, versions, every), versions, every, getattr(run, "n_ranks_at", None))


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
    """Write the files of a schedule, completed if a `summary` is given; every gradient has a different loss."""
    attributes = {"n_ranks": run.n_ranks} | (attributes or {})
    create_run(directory, config_toml=config, attributes=attributes, x0=X0, parameter_shapes=shapes)
    for rank in range(run.n_ranks):
        with RankLog(directory, LogSettings(rank, run.n_ranks, every)) as log:
            for k, vector in enumerate(run.versions[rank]):
                log.append(run.start[rank][k], run.end[rank][k], loss(rank, k), 10 + k, k, vector, STEPSIZE)
            for evaluation in evaluations if rank == 0 else ():
                log.append_evaluation(*evaluation)
    if summary is not None:
        complete_run(directory, final=X0 + 1, attributes=summary)
    return directory


def write_generation(directory, number, run, before, begun_s=0.0, every=1, *, parent=None, config="", attributes=None):
    """Write the files of one generation, whose schedule begins at time 0; losses are those of `write_run`."""
    before = np.array(before)
    required = {"n_ranks": run.n_ranks, "run_id": "synthetic", "generation": number}
    required |= {"parent": number - 1 if parent is None else parent, "versions_before": before, "begun_s": begun_s}
    folder = generation_directory(directory, number)
    create_run(folder, config_toml=config, attributes=required | (attributes or {}), x0=X0 + number)
    for rank in range(run.n_ranks):
        with RankLog(folder, LogSettings(rank, run.n_ranks, every), versions_before=before) as log:
            write_rows(log, rank, run, begun_s, before[rank])
            if rank == 0:
                log.append_evaluation(begun_s, 0, 1.0, 0.5)
    return folder


def write_rows(log, rank, run, begun_s, before, rows=None):
    """Log gradients of a schedule; every gradient has a different loss."""
    for k in range(len(run.end[rank])) if rows is None else rows:
        times = begun_s + run.start[rank][k], begun_s + run.end[rank][k]
        log.append(*times, rank + (before + k) / 1000, 10 + before + k, k, run.versions[rank][k], STEPSIZE)


def resumed(runs, kept=None):
    """Return the schedule of a run of several generations, of which the first `kept` gradients of each rank count.

    All gradients of the last generation count. The schedule also has the lists ``before`` and ``begun_s`` of the
    arguments of `write_generation`.
    """
    n_streams = max(run.n_ranks for run in runs)
    kept = [*([[len(end) for end in run.end] for run in runs[:-1]] if kept is None else kept), None]
    before, begun_s, befores, begins = np.zeros(n_streams, int), 0.0, [], []
    start, end, versions = ([[] for _ in range(n_streams)] for _ in range(3))
    for place, (run, keep) in enumerate(zip(runs, kept, strict=True)):
        befores.append(before[: max(run.n_ranks for run in runs[: place + 1])])
        begins.append(begun_s)
        counts = np.array([len(times) for times in run.end]) if keep is None else np.array(keep)
        after = before + np.pad(counts, (0, n_streams - run.n_ranks))
        for rank, n in enumerate(counts):
            start[rank].append(begun_s + run.start[rank][:n])
            end[rank].append(begun_s + run.end[rank][:n])
            vectors = np.tile(before, (n, 1))
            vectors[:, : run.n_ranks] += run.versions[rank][:n]
            versions[rank].append(np.minimum(vectors, after))
        begun_s = max(begun_s, *(times[-1][-1] for times in end if times and times[-1].size)) + 0.25
        before = after

    def n_ranks_at(moments):
        return np.array([runs[sum(moment >= begin for begin in begins) - 1].n_ranks for moment in moments])

    return SimpleNamespace(
        n_ranks_at=n_ranks_at,
        start=[np.concatenate([np.empty(0), *times]) for times in start],
        end=[np.concatenate([np.empty(0), *times]) for times in end],
        versions=[np.concatenate([np.empty((0, n_streams)), *rows]).astype(np.uint32) for rows in versions],
        n_ranks=n_streams,
        before=befores,
        begun_s=begins,
    )


def write_generations(directory, runs, kept=None, every=1, **options):
    """Write the files of the schedule that `resumed` returns, and return it."""
    expected = resumed(runs, kept)
    for number, run in enumerate(runs):
        write_generation(directory, number, run, expected.before[number], expected.begun_s[number], every, **options)
    return expected
