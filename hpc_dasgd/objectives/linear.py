"""Linear classifiers, which are convex: constants that the theory needs are known."""

from math import log

import numpy as np

from hpc_dasgd.config.rules import NOT_NEGATIVE
from hpc_dasgd.data.dataset import Dataset
from hpc_dasgd.errors import ConfigError
from hpc_dasgd.objectives.losses import Loss
from hpc_dasgd.objectives.network import Network

_PIECE_ROWS = 4096


def classifier(data: Dataset, n_classes: int, n_outputs: int, loss: Loss, l2: float) -> Network:
    """Return a network of one layer whose initial parameters are zero, so that all classes are equally likely.

    Parameters
    ----------
    data : Dataset
        A data set with classes.
    n_classes : int
        Number of classes.
    n_outputs : int
        Number of outputs of the layer.
    loss : Loss
        Loss of the outputs.
    l2 : float, at least 0
        Factor of half the squared norm of all parameters, which is added to the loss.

    Raises
    ------
    ConfigError
        If `l2` is negative.
    """
    l2 = float(NOT_NEGATIVE.check("objective.l2", l2))

    def constants() -> dict[str, float]:
        return {"L": loss.curvature * _mean_square(data) + l2, "mu": l2, "F_0": log(n_classes)}

    return Network((data.n_features, n_outputs), loss, l2=l2, constants=constants)


def require_classes(data: Dataset, kind: str) -> int:
    """Return the number of classes.

    Raises
    ------
    ConfigError
        If the targets of `data` are not classes.
    """
    if data.n_classes is None:
        raise ConfigError(f'`data.path` must hold classes for `objective.kind` = "{kind}", got float targets')
    return data.n_classes


def _mean_square(data: Dataset) -> float:
    """Return the mean of ``1 + |x|**2`` over the training set, all of which is read.

    This is the trace of the second moment of ``(x, 1)``, and so an upper bound of its largest eigenvalue.
    """
    pieces = data.train.batches(_PIECE_ROWS)
    squares = sum(float(np.square(piece.x, dtype=np.float64).sum()) for piece in pieces)
    return 1 + squares / data.train.n_rows
