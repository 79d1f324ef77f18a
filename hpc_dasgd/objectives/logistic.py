"""Logistic regression."""

from hpc_dasgd.errors import ConfigError
from hpc_dasgd.objectives.linear import classifier, require_classes
from hpc_dasgd.objectives.losses import BINARY_CROSS_ENTROPY
from hpc_dasgd.objectives.network import Network


def logistic(data, *, l2: float = 0.0) -> Network:
    """Logistic regression on two classes.

    ``f = mean of log(1 + exp(o)) - y o + l2/2 |parameters|**2`` with ``o = x weight + bias``, starting at
    zero. Its constants: ``L``, a bound, is 1/4 of the mean of ``1 + |x|**2``, plus `l2`; ``mu`` is `l2`;
    ``F_0``, a bound, is log 2.

    Parameters
    ----------
    data : Dataset
        With two classes.
    l2 : float, at least 0
        Regularization, biases included.

    Raises
    ------
    ConfigError
        If `data` has not exactly two classes, or `l2` is negative.
    """
    require_classes(data, "logistic")
    if data.n_classes != 2:
        rule = '`data.path` must hold exactly 2 classes for `objective.kind` = "logistic"'
        raise ConfigError(f"{rule}, got {data.n_classes}; softmax takes any number")
    return classifier(data, BINARY_CROSS_ENTROPY, 1, l2)
