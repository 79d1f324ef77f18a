"""Linear classifiers: convex, so that theory knows their constants."""

from math import log

import numpy as np

from hpc_dasgd.config.rules import NOT_NEGATIVE
from hpc_dasgd.errors import ConfigError
from hpc_dasgd.objectives.losses import Loss
from hpc_dasgd.objectives.network import Network

_PIECE_ROWS = 4096


def classifier(data, loss: Loss, n_outputs: int, l2: float) -> Network:
    """Return the network of one layer that starts at zero, where every class is equally likely.

    Parameters
    ----------
    data : Dataset
        With classes.
    loss : Loss
        Of the outputs.
    n_outputs : int
        Outputs of the layer.
    l2 : float
        Factor of half the squared norm of all parameters.

    Raises
    ------
    ConfigError
        If `l2` is negative.
    """
    l2 = float(NOT_NEGATIVE.check("objective.l2", l2))

    def constants():
        return {"L": loss.curvature * _mean_square(data) + l2, "mu": l2, "F_0": log(data.n_classes)}

    return Network((data.n_features, n_outputs), loss, l2=l2, constants=constants)


def require_classes(data, kind: str) -> None:
    """Raise ConfigError if the targets of `data` are not classes."""
    if data.n_classes is None:
        raise ConfigError(f'`data.path` must hold classes for `objective.kind` = "{kind}", got float targets')


def _mean_square(data) -> float:
    """Return the mean of ``1 + |x|**2`` over the training set, which is read as a whole.

    It is the trace, hence a bound of the largest eigenvalue, of the second moment of ``(x, 1)``.
    """
    pieces = data.train.pieces(_PIECE_ROWS)
    squares = sum(float(np.square(piece.x, dtype=np.float64).sum()) for piece in pieces)
    return 1 + squares / data.train.n_rows
