"""Multilayer perceptron."""

from collections.abc import Sequence

from hpc_dasgd.config.rules import WIDTHS, one_of
from hpc_dasgd.objectives.losses import CROSS_ENTROPY, HALF_SQUARED_ERROR
from hpc_dasgd.objectives.network import ACTIVATIONS, Network

_ACTIVATION = one_of(*ACTIVATIONS)


def mlp(data, *, hidden: Sequence[int] = (128, 128), activation: str = "relu") -> Network:
    """Fully connected network on classes (cross-entropy) or float targets (half mean squared error).

    Weights start normally distributed, after He et al. (arXiv 1502.01852) for relu and after Glorot and
    Bengio (AISTATS 2010) for tanh; biases at zero.

    Parameters
    ----------
    data : Dataset
        With classes, or with float targets, whose loss is the mean over rows of half the squared distance.
    hidden : sequence of int, at least one
        Widths of the hidden layers.
    activation : {"relu", "tanh"}
        After each hidden layer.

    Raises
    ------
    ConfigError
        If an option is out of range.
    """
    WIDTHS.check("objective.hidden", hidden)
    chosen = ACTIVATIONS[_ACTIVATION.check("objective.activation", activation)]
    if data.n_classes is None:
        return Network((data.n_features, *hidden, data.n_targets), HALF_SQUARED_ERROR, chosen)
    return Network((data.n_features, *hidden, data.n_classes), CROSS_ENTROPY, chosen)
