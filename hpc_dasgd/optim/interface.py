"""Protocols of optimizers.

The *update* is the vector that is added to the parameters. An optimizer computes it from a gradient in blocks of
elements, so that a caller can add one block while it is still in the processor's cache, and without temporaries.
"""

from collections.abc import Mapping
from typing import Protocol

from hpc_dasgd.arrays.types import Array


class BlockFunction(Protocol):
    """A function that computes one block of an update."""

    def __call__(self, lo: int, hi: int, out: Array, /) -> None:
        """Compute elements ``lo:hi`` of the update and advance the optimizer's state of these elements.

        Must be called exactly once for each element of the vector.

        Parameters
        ----------
        lo, hi : int
            Bounds of the block.
        out : array, shape (hi - lo,), dtype and memory of the gradient
            Overwritten; must not share memory with the gradient.
        """


class Optimizer(Protocol):
    """A rule that turns gradients into updates."""

    def update(self, gradient: Array, stepsize: float, /) -> BlockFunction:
        """Begin one step, and return the function that computes its update.

        Parameters
        ----------
        gradient : array, shape (n_params,)
            Must not change until all blocks are computed.
        stepsize : float
            Stepsize (learning rate) of this step.

        Returns
        -------
        block : BlockFunction
            Must compute all blocks before the next call of `update`.
        """

    @property
    def state(self) -> Mapping[str, Array | int]:
        """The state by name: arrays of shape (n_params,), which are not copies, and integers."""

    def load_state(self, state: Mapping[str, Array | int], /) -> None:
        """Replace the state by one that an optimizer of the same kind and length had.

        Raises
        ------
        ValueError
            If the names or shapes are not those of this optimizer's state.
        """
