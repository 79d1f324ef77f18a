"""What a user should be warned of after a run: what its log cannot tell, and what its log shows to have gone wrong."""

import math

import numpy as np

from hpc_dasgd.analysis.run import Run
from hpc_dasgd.config.exchange_traits import traits_in
from hpc_dasgd.storage.layout import FLUSH_EVERY_S

_DROPPED_SHARE = 0.01
_GROWTH = 1.5
_BLOCKS = 10  # of a quarter of the run, whose means differ by chance
_FEW = 10  # gradients of a rank, which say nothing of it
_EARLY_SHARE = 0.1  # of the run that a rank may end before the last one


def warnings(run: Run, bound: dict | None = None) -> list[str]:
    """Return the warnings of a run, those that `run` came with first.

    Parameters
    ----------
    run : Run
    bound : dict, optional
        What ``bound --json`` prints.

    Raises
    ------
    ConfigError
        As `Run.staleness`, where version vectors were logged.
    """
    found = [*_early_ranks(run), *_dropped_reads(run)]
    if run.has_versions and traits_in(run.settings.get("exchange", {})).measures_staleness:
        found += [*_unheard_ranks(run), *_growth(run)]
    return [*run.warnings, *found, *_stepsize(bound or {})]


def _unheard_ranks(run: Run):
    """A rank whose updates no other rank ever held, though each had time to."""
    others = run.counts >= _FEW
    if others.sum() < 2:
        return
    replicas = run.replicas(np.array([math.inf]))[0]
    np.fill_diagonal(replicas, 0)
    unheard = np.flatnonzero(others & (replicas.max(axis=0) == 0))
    if unheard.size:
        yield f"no other rank ever held an update of {_ranks(unheard)}: is the overlay connected?"


def _growth(run: Run):
    """Staleness that grows while the run goes on, by more than it varies."""
    staleness = run.staleness().missed.staleness
    if staleness.size < 4 * _BLOCKS * _FEW:
        return
    blocks = np.array([block.mean() for block in np.array_split(staleness, 4 * _BLOCKS)])
    second, last = blocks[_BLOCKS : 2 * _BLOCKS], blocks[3 * _BLOCKS :]
    noise = math.sqrt((second.var(ddof=1) + last.var(ddof=1)) / _BLOCKS)
    if last.mean() > _GROWTH * second.mean() and last.mean() - second.mean() > max(1, 3 * noise):
        yield (
            f"staleness grew: {last.mean():.3g} gradients on average in the last quarter of the run, "
            f"{second.mean():.3g} in the second"
        )


def _early_ranks(run: Run):
    """Ranks that stopped long before the last one, or never began; of a run that went on with fewer the rest."""
    counts = run.counts[: run.generations[-1].n_ranks]
    begun = np.flatnonzero(counts)
    if not begun.size:
        return
    exchange = run.settings.get("exchange", {})
    idle = np.setdiff1d(np.flatnonzero(counts == 0), traits_in(exchange).idle_ranks(exchange))
    if idle.size:
        yield f"{_ranks(idle)} made no gradients"
    ends = [run.gradients["t_end_s"][run.rows(rank)] for rank in begun]
    last = max(times[-1] for times in ends)
    allowed = _EARLY_SHARE * (last - run.gradients["t_start_s"].min())
    if run.status != "complete":
        allowed = max(allowed, 2 * FLUSH_EVERY_S)  # the files of ranks are written at different moments
    early = [
        rank
        for rank, times in zip(begun, ends, strict=True)
        if times.size >= _FEW and last - times[-1] > max(allowed, 3 * np.diff(times).max())
    ]
    if early:
        first = min(times[-1] for rank, times in zip(begun, ends, strict=True) if rank in early)
        yield f"{_ranks(early)} stopped early: after {first:.1f} s, the last rank after {last:.1f} s"


def _dropped_reads(run: Run):
    dropped, n_gradients = run.attributes.get("dropped_reads", 0), int(run.counts.sum())
    if n_gradients and dropped > _DROPPED_SHARE * n_gradients:
        yield f"{dropped} reads were dropped, {dropped / n_gradients:.1%} of the gradients: neighbours wrote meanwhile"


def _stepsize(bound: dict):
    for name in ("A", "B"):
        if (bound.get(name) or {}).get("condition_met") is False:
            yield f"the stepsize {bound['stepsize']:.4g} is above what bound {name} asks for"


def _ranks(ranks) -> str:
    numbers = [str(int(rank)) for rank in ranks]
    listed = ", ".join(numbers[:8]) + (f" and {len(numbers) - 8} more" if len(numbers) > 8 else "")
    return f"rank{'s' if len(numbers) > 1 else ''} {listed}"
