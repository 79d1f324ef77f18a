"""Softmax regression."""

from hpc_dasgd.objectives.linear import classifier, require_classes
from hpc_dasgd.objectives.losses import CROSS_ENTROPY
from hpc_dasgd.objectives.network import Network


def softmax(data, *, l2: float = 0.0) -> Network:
    """Softmax (multinomial logistic) regression on classes.

    ``f = mean of log sum_j exp(o_j) - o_y + l2/2 |parameters|**2`` with ``o = x weight + bias``, starting at
    zero. Its constants: ``L``, a bound, is 1/2 of the mean of ``1 + |x|**2``, plus `l2`; ``mu`` is `l2`;
    ``F_0``, a bound, is the logarithm of the number of classes.

    Parameters
    ----------
    data : Dataset
        With classes.
    l2 : float, at least 0
        Regularization, biases included.

    Raises
    ------
    ConfigError
        If `data` has no classes, or `l2` is negative.
    """
    require_classes(data, "softmax")
    return classifier(data, CROSS_ENTROPY, data.n_classes, l2)
