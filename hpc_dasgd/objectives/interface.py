"""Protocols of objectives: the methods that each must have, and the optional ones.

Every objective must satisfy `Objective`. The other protocols are optional, and functions such as `can_evaluate` return
whether an objective satisfies one. No base class is needed, only methods and attributes of these names.
"""

from collections.abc import Mapping
from typing import Protocol, SupportsFloat, TypeGuard

import numpy as np

from hpc_dasgd.arrays.types import AnyArray, Array
from hpc_dasgd.data.batches import Batch


class Objective(Protocol):
    """A function to minimize over a flat vector of parameters, given by its stochastic gradients.

    An objective written by a user needs these two methods and no base class. It may also offer `Evaluates`,
    `HasConstants`, `HasParameterShapes`, `HasRunningStatistics` and `ComputesOnGpu`.

    `parameters` and `out` are arrays of one namespace, dtype and length, and an objective computes in that dtype.
    It may keep references to both arrays and views of them: the training loop passes the same arrays at every step.
    """

    def initial(self, rng: np.random.Generator, /) -> AnyArray:
        """Return the initial parameters.

        Every rank calls it, with a generator of the same seed, and all ranks start from the parameters of rank 0.

        Parameters
        ----------
        rng : numpy.random.Generator
            Source of random numbers.

        Returns
        -------
        parameters : ndarray, shape (n_params,), floating, host memory
        """

    def loss_and_gradient(self, parameters: Array, batch: Batch, out: Array, /) -> SupportsFloat:
        """Compute the loss and its gradient on one batch.

        Parameters
        ----------
        parameters : array, shape (n_params,), floating, device memory
            The point at which the gradient is computed; must not be changed.
        batch : Batch
            The examples, and ``batch.rng`` as the only source of further randomness, so that a run can be replayed.
        out : array, shape (n_params,), dtype and memory of `parameters`
            Every element is overwritten with the gradient.

        Returns
        -------
        loss : float or array of shape ()
            The loss. The value of an array on a GPU is not read before the gradient is complete, so that other ranks
            can be read while the GPU computes.
        """


class Evaluates(Protocol):
    """An objective with metrics; without them, nothing is evaluated."""

    def evaluate(self, parameters: Array, batch: Batch | None, /) -> Mapping[str, float]:
        """Compute metrics on one batch.

        The caller passes pieces of the test split and weights the means of each by its number of rows.

        Parameters
        ----------
        parameters : array, shape (n_params,), floating, device memory
            Must not be changed.
        batch : Batch or None
            The examples; None if there is no data set.

        Returns
        -------
        metrics : dict of str to float
            Means over the rows of `batch`; those named "loss" and "accuracy" are recorded.
        """


class HasConstants(Protocol):
    """An objective of which constants of the theory are known; `hpc_dasgd.theory` estimates the others."""

    def constants(self) -> Mapping[str, float]:
        """Return the known constants, by their names in ``docs/theory.md``.

        Returns
        -------
        constants : dict of str to float
            Some or all of ``L`` (smoothness, or an upper bound), ``mu`` (strong convexity), ``sigma`` (square root of
            the variance of a gradient) and ``F_0`` (initial value minus the minimum, or an upper bound).
        """


class HasParameterShapes(Protocol):
    """An objective whose parameter vector consists of named arrays."""

    @property
    def parameter_shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Names and shapes of the arrays, in their order in the parameter vector, each in C order."""


class HasRunningStatistics(Protocol):
    """An objective with state beside the parameters, such as the running means of batch normalization.

    Each rank has its own statistics; at the end of training each objective is given the mean over ranks. A replay
    assumes that gradients do not depend on them.
    """

    def running_statistics(self) -> dict[str, AnyArray]:
        """Return the statistics: floating arrays in host memory, by name, of the same names and shapes on each rank."""

    def load_running_statistics(self, statistics: dict[str, AnyArray], /) -> None:
        """Replace the statistics by arrays of the same names and shapes."""


class ComputesOnGpu(Protocol):
    """An objective that may accept CuPy's arrays."""

    @property
    def on_gpu(self) -> bool:
        """Whether CuPy's arrays are accepted; if not, ``device.kind = "auto"`` selects the processor.

        What the objective computes on the GPU must be ordered with CUDA's default stream, as it is by default in CuPy
        and PyTorch.
        """


def can_evaluate(objective: object) -> TypeGuard[Evaluates]:
    """Return whether an objective has the method ``evaluate``."""
    return callable(getattr(objective, "evaluate", None))


def has_parameter_shapes(objective: object) -> TypeGuard[HasParameterShapes]:
    """Return whether an objective names the arrays that its parameters consist of."""
    return getattr(objective, "parameter_shapes", None) is not None


def has_running_statistics(objective: object) -> TypeGuard[HasRunningStatistics]:
    """Return whether an objective has the method ``running_statistics``; see `HasRunningStatistics`."""
    return callable(getattr(objective, "running_statistics", None))


def computes_on_gpu(objective: object) -> bool:
    """Return whether an objective states that it accepts CuPy's arrays; see `ComputesOnGpu`."""
    return bool(getattr(objective, "on_gpu", False))
