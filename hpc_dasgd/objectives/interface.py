"""What the training loop knows of an objective."""

from typing import Protocol

import numpy as np

from hpc_dasgd.data.batches import Batch


class Objective(Protocol):
    """A function to minimize over a flat vector of parameters, known through stochastic gradients.

    The user's own objective needs no more than these two methods, and no base class. Some more names are
    optional.

    ``evaluate(parameters, batch) -> dict of str to float``
        Means over the rows of `batch`, under the names "loss" and "accuracy". It is called on pieces of the
        test split, and the caller weighs the means by rows; `batch` is None where there is no data. Without
        this method nothing is evaluated.
    ``parameter_shapes`` : dict of str to tuple of int
        Names and shapes of the arrays that the flat vector is made of, in its order, each in C order.
    ``constants() -> dict of str to float``
        What is known of the function, under the names of ``theory.md``: ``L`` (smoothness, or a bound),
        ``mu`` (strong convexity), ``sigma`` (root of the variance of a gradient), ``F_0`` (value at the start
        minus the minimum, or a bound).
    ``on_gpu`` : bool
        Whether it takes CuPy's arrays; by ``device.kind = "auto"`` others are trained on the processor. What it
        computes there must be in the order of CUDA's default stream, as what CuPy and PyTorch compute is by default.
    ``running_statistics() -> dict of str to ndarray``, ``load_running_statistics(statistics)``
        What training changes beside the parameters, such as running means of batch normalization: floating arrays
        in host memory, by name, the same names and shapes on every rank. Each rank keeps its own; at the end it is
        given the mean over ranks. A replay takes gradients not to depend on them.

    `parameters` and `out` are arrays of one namespace, dtype and length. An objective computes in that dtype.
    It may keep references to both arrays, and views: the loop passes the same ones at every step.
    """

    def initial(self, rng: np.random.Generator) -> np.ndarray:
        """Return the first parameters, shape (n_params,), floating; rank 0's are the ones that are used."""

    def loss_and_gradient(self, parameters, batch: Batch, out) -> float:
        """Compute the loss and its gradient on one batch.

        Parameters
        ----------
        parameters : array, shape (n_params,), floating
            Where; not changed.
        batch : Batch
            The examples, and ``batch.rng`` for further randomness. Whatever is random must come from there:
            that is what makes a replay possible.
        out : array, shape (n_params,), dtype of `parameters`
            Overwritten with the gradient, every element of it.

        Returns
        -------
        loss : float
            Or what ``float()`` takes: an array of shape () on a GPU is not asked for its value before the gradient is
            there, so that other ranks can be read meanwhile.
        """
