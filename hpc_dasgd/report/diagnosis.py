"""Warnings about a run: gaps in its log, and problems that the log shows."""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from hpc_dasgd.analysis.run import Run
from hpc_dasgd.config.exchange_traits import traits_in
from hpc_dasgd.console.formats import ranks_text
from hpc_dasgd.storage.layout import FLUSH_EVERY_S

_MAX_DROPPED_SHARE = 0.01  # dropped reads per gradient above which there is a warning
_GROWTH = 1.5  # factor by which staleness must grow from the second to the last quarter
_BLOCKS_PER_QUARTER = 10  # means over blocks of gradients show how much staleness varies by chance
_MIN_GRADIENTS = 10  # gradients of a rank; fewer are too few samples to judge the rank
_EARLY_SHARE = 0.1  # fraction of the duration of the run by which a rank may stop before the last one


def warnings(run: Run, bound: dict[str, Any] | None = None) -> list[str]:
    """Return the warnings about a run, starting with ``run.warnings``.

    Parameters
    ----------
    run : Run
    bound : dict, optional
        The object that ``bound --json`` prints.

    Returns
    -------
    texts : list of str

    Raises
    ------
    ConfigError
        As `Run.staleness`, if version vectors were logged.
    """
    texts = [*run.warnings, *_early_ranks(run), *_dropped_reads(run)]
    if run.has_versions and traits_in(run.settings.get("exchange", {})).measures_staleness:
        texts += [*_unread_ranks(run), *_growing_staleness(run)]
    return [*texts, *_large_stepsize(bound or {})]


def _unread_ranks(run: Run) -> Iterator[str]:
    """Warn of ranks whose updates are in no other rank's replica, although they computed enough gradients."""
    judged = run.counts >= _MIN_GRADIENTS
    if judged.sum() < 2:
        return
    versions = run.version_vectors_at(np.array([math.inf]))[0]
    np.fill_diagonal(versions, 0)
    unread = np.flatnonzero(judged & (versions.max(axis=0) == 0))
    if unread.size:
        yield f"no other rank ever held an update of {ranks_text(unread)}: is the overlay connected?"


def _growing_staleness(run: Run) -> Iterator[str]:
    """Warn if staleness grew during the run by more than it varies by chance."""
    staleness = run.staleness().missed.staleness
    if staleness.size < 4 * _BLOCKS_PER_QUARTER * _MIN_GRADIENTS:
        return
    blocks = np.array([block.mean() for block in np.array_split(staleness, 4 * _BLOCKS_PER_QUARTER)])
    second, last = blocks[_BLOCKS_PER_QUARTER : 2 * _BLOCKS_PER_QUARTER], blocks[3 * _BLOCKS_PER_QUARTER :]
    noise = math.sqrt((second.var(ddof=1) + last.var(ddof=1)) / _BLOCKS_PER_QUARTER)
    if last.mean() > _GROWTH * second.mean() and last.mean() - second.mean() > max(1, 3 * noise):
        yield (
            f"staleness grew: {last.mean():.3g} gradients on average in the last quarter of the run, "
            f"{second.mean():.3g} in the second"
        )


def _early_ranks(run: Run) -> Iterator[str]:
    """Warn of ranks of the newest generation that stopped long before the last one, or computed no gradients."""
    counts = run.counts[: run.generations[-1].n_ranks]
    active = [int(rank) for rank in np.flatnonzero(counts)]
    if not active:
        return
    exchange = run.settings.get("exchange", {})
    idle = np.setdiff1d(np.flatnonzero(counts == 0), traits_in(exchange).idle_ranks(exchange))
    if idle.size:
        yield f"{ranks_text(idle)} made no gradients"
    end_times = {rank: run.gradients["t_end_s"][run.rows(rank)] for rank in active}
    last_end = max(times[-1] for times in end_times.values())
    allowed = _EARLY_SHARE * (last_end - run.gradients["t_start_s"].min())
    if run.status != "complete":
        allowed = max(allowed, 2 * FLUSH_EVERY_S)  # Ranks flush their logs at different times.
    early = [
        rank
        for rank, times in end_times.items()
        if times.size >= _MIN_GRADIENTS and last_end - times[-1] > max(allowed, 3 * np.diff(times).max())
    ]
    if early:
        first_end = min(end_times[rank][-1] for rank in early)
        yield f"{ranks_text(early)} stopped early: after {first_end:.1f} s, the last rank after {last_end:.1f} s"


def _dropped_reads(run: Run) -> Iterator[str]:
    dropped, n_gradients = run.attributes.get("dropped_reads", 0), int(run.counts.sum())
    if n_gradients and dropped > _MAX_DROPPED_SHARE * n_gradients:
        share = dropped / n_gradients
        yield f"{dropped} reads were dropped, {share:.1%} of the gradients: neighbours wrote at the same time"


def _large_stepsize(bound: dict[str, Any]) -> Iterator[str]:
    for name in ("A", "B"):
        if (bound.get(name) or {}).get("condition_met") is False:
            yield f"the stepsize {bound['stepsize']:.4g} is above the largest for which bound {name} holds"
