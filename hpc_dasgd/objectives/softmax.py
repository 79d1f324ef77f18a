"""Softmax regression."""

from hpc_dasgd.data.dataset import Dataset
from hpc_dasgd.objectives.linear import classifier, require_classes
from hpc_dasgd.objectives.losses import CROSS_ENTROPY
from hpc_dasgd.objectives.network import Network


def softmax(data: Dataset, *, l2: float = 0.0) -> Network:
    """Softmax (multinomial logistic) regression on classes.

    ``f = mean of log sum_j exp(o_j) - o_y + l2/2 |parameters|**2`` with ``o = x weight + bias``. All parameters start
    at zero. Known constants are ``L`` (an upper bound: `l2` plus 1/2 of the mean of ``1 + |x|**2``), ``mu`` (`l2`) and
    ``F_0`` (an upper bound: log of the number of classes).

    Parameters
    ----------
    data : Dataset
        A data set with classes.
    l2 : float, at least 0
        Factor of the regularization, which includes biases.

    Raises
    ------
    ConfigError
        If `data` has no classes, or `l2` is negative.
    """
    n_classes = require_classes(data, "softmax")
    return classifier(data, n_classes, n_classes, CROSS_ENTROPY, l2)
