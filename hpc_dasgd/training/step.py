"""One step of one rank, with the properties of its gradient."""

import math
from collections.abc import Callable
from dataclasses import dataclass

from hpc_dasgd.arrays.types import Int64s


@dataclass(slots=True, eq=False)
class Step:
    """A gradient while it is computed, pushed and recorded. The same object serves all steps of a rank.

    Attributes
    ----------
    now : callable
        Clock of the run, in seconds since it began.
    version_vector : ndarray, shape (n_ranks,), int64
        Version vector of the replica that the gradient is computed at, counted from the start of this generation.
    version_before, gradients_before : int
        Number of updates of this rank, and of gradients of all ranks, in earlier generations of the run.
    version : int
        Number of updates that this rank had made before this one, in this generation.
    begun_s, computed_s, pushed_s : float, s
        When the computation began and ended, and when the update was published.
    loss : float
        Loss of the batch.
    squared_norm : float
        Squared Euclidean norm of the gradient.
    stepsize : float
        Stepsize that the update was made with.
    """

    now: Callable[[], float]
    version_vector: Int64s
    version_before: int
    gradients_before: int
    version: int = 0
    begun_s: float = math.nan
    computed_s: float = math.nan
    pushed_s: float = math.nan
    loss: float = math.nan
    squared_norm: float = 0.0
    stepsize: float = math.nan

    @property
    def version_of_run(self) -> int:
        """Number of this gradient among those of its rank, counted from 0 over all generations of the run."""
        return self.version_before + self.version

    @property
    def gradient_norm(self) -> float:
        """Euclidean norm of the gradient."""
        return math.sqrt(self.squared_norm)

    def begin(self, version: int) -> None:
        """Start the step; `version_vector` is up to date."""
        self.version, self.squared_norm, self.stepsize = version, 0.0, math.nan
        self.begun_s = self.now()

    def complete(self, loss: float) -> None:
        """Record that the computation of the gradient has ended."""
        self.computed_s, self.loss = self.now(), loss
