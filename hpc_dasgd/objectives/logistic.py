"""Logistic regression."""

from hpc_dasgd.data.dataset import Dataset
from hpc_dasgd.errors import ConfigError
from hpc_dasgd.objectives.linear import classifier, require_classes
from hpc_dasgd.objectives.losses import BINARY_CROSS_ENTROPY
from hpc_dasgd.objectives.network import Network


def logistic(data: Dataset, *, l2: float = 0.0) -> Network:
    """Logistic regression on two classes.

    ``f = mean of log(1 + exp(o)) - y o + l2/2 |parameters|**2`` with ``o = x weight + bias``. All parameters start at
    zero. Known constants are ``L`` (an upper bound: `l2` plus 1/4 of the mean of ``1 + |x|**2``), ``mu`` (`l2`) and
    ``F_0`` (an upper bound: log 2).

    Parameters
    ----------
    data : Dataset
        A data set with two classes.
    l2 : float, at least 0
        Factor of the regularization, which includes biases.

    Raises
    ------
    ConfigError
        If `data` does not have exactly two classes, or `l2` is negative.
    """
    n_classes = require_classes(data, "logistic")
    if n_classes != 2:
        rule = '`data.path` must hold exactly 2 classes for `objective.kind` = "logistic"'
        raise ConfigError(f"{rule}, got {n_classes}; softmax takes any number")
    return classifier(data, n_classes, 1, BINARY_CROSS_ENTROPY, l2)
