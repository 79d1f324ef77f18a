"""Status of a run at one moment."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hpc_dasgd.arrays.types import Float64s, Int64s


@dataclass(frozen=True, eq=False)
class RunStatus:
    """Status of a run as its files showed it at one moment.

    Arrays have one element per rank of the newest generation. Rates are averages over the last ten seconds; losses
    and staleness are averages over the last rows of a log.

    Attributes
    ----------
    directory : Path
        The run directory.
    status : str
        Attribute ``status`` of ``run.h5``: ``"running"``, ``"stopped"`` or ``"complete"``.
    summary : dict
        The attributes ``gradients`` and ``seconds`` of ``run.h5``, which exist once the run has ended.
    budget : dict
        Section ``[budget]`` of the settings.
    counts : ndarray, shape (n_ranks,), int64
        Number of gradients of each rank so far, those of earlier generations included.
    n_earlier : int
        Number of gradients of ranks that exist only in earlier generations.
    rates : ndarray, shape (n_ranks,), float64, 1/s
        Gradients per second of each rank.
    unchanged_s : ndarray, shape (n_ranks,), float64, s
        Time since the log of each rank last grew; nan if there is no log yet.
    staleness : ndarray, shape (n_ranks,), float64
        Mean staleness of the last logged gradients of each rank; nan if unknown.
    loss : float
        Mean loss of the last batches of all ranks; nan if unknown.
    evaluation : dict or None
        The last evaluation, by the names of `layout.EVALUATION_COLUMNS`.
    elapsed_s : float, s
        Time from the start of the run to the end of the newest gradient.
    idle_s : float, s
        Time since any file of the run last changed.
    """

    directory: Path
    status: str
    summary: dict[str, Any]
    budget: dict[str, Any]
    counts: Int64s
    n_earlier: int
    rates: Float64s
    unchanged_s: Float64s
    staleness: Float64s
    loss: float
    evaluation: dict[str, Any] | None
    elapsed_s: float
    idle_s: float

    @property
    def gradients(self) -> int:
        """Number of gradients of all ranks so far."""
        return int(self.counts.sum()) + self.n_earlier

    @property
    def ended(self) -> bool:
        """Whether the run is complete or was stopped, according to ``run.h5``."""
        return self.status in ("complete", "stopped")

    @property
    def rate(self) -> float:
        """Gradients per second of all ranks together."""
        return float(self.rates.sum())

    @property
    def mean_staleness(self) -> float:
        """Mean of `staleness`, weighted by the rates of the ranks; nan if unknown."""
        known = np.isfinite(self.staleness) & (self.rates > 0)
        return float(np.average(self.staleness[known], weights=self.rates[known])) if known.any() else math.nan

    @property
    def remaining_s(self) -> float:
        """Estimated time, in s, until the budget is used up, without regard to its target loss; nan if unknown."""
        estimates = []
        if "gradients" in self.budget and self.rate > 0:
            estimates.append((self.budget["gradients"] - self.gradients) / self.rate)
        if "seconds" in self.budget:
            estimates.append(self.budget["seconds"] - self.elapsed_s)
        return max(0.0, min(estimates)) if estimates else math.nan
