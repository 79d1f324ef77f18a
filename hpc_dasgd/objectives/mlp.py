"""Multilayer perceptron."""

from collections.abc import Sequence

from hpc_dasgd.config.rules import POSITIVE_INTEGERS, one_of
from hpc_dasgd.data.dataset import Dataset
from hpc_dasgd.objectives.losses import CROSS_ENTROPY, HALF_SQUARED_ERROR
from hpc_dasgd.objectives.network import ACTIVATIONS, Network

_ACTIVATION = one_of(*ACTIVATIONS)


def mlp(data: Dataset, *, hidden: Sequence[int] = (128, 128), activation: str = "relu") -> Network:
    """Fully connected network on classes (cross-entropy) or float targets (half mean squared error).

    Initial weights are normally distributed, as He et al. (arXiv 1502.01852) propose for relu, and Glorot and Bengio
    (AISTATS 2010) for tanh. Initial biases are zero.

    Parameters
    ----------
    data : Dataset
        A data set with classes, or with float targets. The loss of float targets is the mean over rows of half the
        squared distance.
    hidden : sequence of int, at least one
        Widths of the hidden layers.
    activation : {"relu", "tanh"}
        Nonlinearity after each hidden layer.

    Raises
    ------
    ConfigError
        If an option is out of range.
    """
    POSITIVE_INTEGERS.check("objective.hidden", hidden)
    function = ACTIVATIONS[_ACTIVATION.check("objective.activation", activation)]
    if data.n_classes is None:
        assert data.n_targets is not None
        return Network((data.n_features, *hidden, data.n_targets), HALF_SQUARED_ERROR, function)
    return Network((data.n_features, *hidden, data.n_classes), CROSS_ENTROPY, function)
