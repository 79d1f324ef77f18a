"""Optimizers turn a gradient into an update, block by block; schedules set the stepsize (learning rate).

The *update* is what is added to the parameters. ``optimizer.update(gradient, stepsize)`` returns a function
``f(lo, hi, out)`` that writes elements ``lo:hi`` of it into `out` and advances the state of these elements,
so each must be asked for exactly once. `out` must share no memory with the gradient. Nothing but `out` and
the state is written: there is no temporary.

A schedule is a function ``stepsize_at(progress, staleness)``; `staleness` is itself a function, called only by
schedules that use it, and not before the update is made: then it is known best.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

from hpc_dasgd.arrays.arithmetic import into
from hpc_dasgd.config.settings import OptimizerConfig
from hpc_dasgd.errors import ConfigError

BlockFunction = Callable[[int, int, Any], None]


class Sgd:
    """``x -= stepsize g``; no state."""

    def __init__(self, n_params: int, dtype, xp):
        self._xp = xp
        self.state = {}

    def update(self, gradient, stepsize: float) -> BlockFunction:
        """Return the block function for one gradient; see the module."""
        scale = -float(stepsize)  # a Python float, unlike one of NumPy's, leaves float32 as it is

        def block(lo: int, hi: int, out) -> None:
            into(out, self._xp.multiply, gradient[lo:hi], scale)

        return block

    def load_state(self, state: Mapping) -> None:
        """Check that `state` is empty, as this optimizer's is."""
        _require_names(state, ())


class Momentum:
    """``v = momentum v + g``, ``x -= stepsize v``, from ``v = 0``: PyTorch's, without dampening."""

    def __init__(self, n_params: int, dtype, xp, *, momentum: float = 0.9):
        self._xp, self._momentum = xp, float(momentum)
        self._velocity = xp.zeros((n_params,), dtype=dtype)

    def update(self, gradient, stepsize: float) -> BlockFunction:
        """Return the block function for one gradient; see the module."""
        xp, scale = self._xp, -float(stepsize)

        def block(lo: int, hi: int, out) -> None:
            velocity = self._velocity[lo:hi]
            into(velocity, xp.multiply, velocity, self._momentum)
            into(velocity, xp.add, velocity, gradient[lo:hi])
            into(out, xp.multiply, velocity, scale)

        return block

    @property
    def state(self) -> dict:
        """``velocity``: array, shape (n_params,); not a copy."""
        return {"velocity": self._velocity}

    def load_state(self, state: Mapping) -> None:
        """Go on from a `state`; `ValueError` if its names or shapes are not this optimizer's."""
        _require_names(state, self.state)
        _load(self._xp, self._velocity, "velocity", state)


class Adam:
    """Adam with bias correction, algorithm 1 of Kingma and Ba (arXiv 1412.6980).

    At step ``t = 1, 2, ...``, from ``m = v = 0``:
    ``m = beta1 m + (1 - beta1) g``,
    ``v = beta2 v + (1 - beta2) g**2``,
    ``x -= stepsize m / (1 - beta1**t) / (sqrt(v / (1 - beta2**t)) + epsilon)``.
    """

    def __init__(self, n_params: int, dtype, xp, *, beta1: float = 0.9, beta2: float = 0.999, epsilon: float = 1e-8):
        self._xp, self._beta1, self._beta2, self._epsilon = xp, float(beta1), float(beta2), float(epsilon)
        self._first = xp.zeros((n_params,), dtype=dtype)
        self._second = xp.zeros((n_params,), dtype=dtype)
        self._step = 0

    def update(self, gradient, stepsize: float) -> BlockFunction:
        """Return the block function for one gradient; see the module."""
        xp = self._xp
        self._step += 1
        scale = -float(stepsize) / (1 - self._beta1**self._step)
        root_correction = math.sqrt(1 - self._beta2**self._step)

        def block(lo: int, hi: int, out) -> None:
            g, m, v = gradient[lo:hi], self._first[lo:hi], self._second[lo:hi]
            into(out, xp.multiply, g, 1 - self._beta1)
            into(m, xp.multiply, m, self._beta1)
            into(m, xp.add, m, out)
            into(out, xp.multiply, g, g)
            into(out, xp.multiply, out, 1 - self._beta2)
            into(v, xp.multiply, v, self._beta2)
            into(v, xp.add, v, out)
            into(out, xp.sqrt, v)
            into(out, xp.divide, out, root_correction)
            into(out, xp.add, out, self._epsilon)
            into(out, xp.divide, m, out)
            into(out, xp.multiply, out, scale)

        return block

    @property
    def state(self) -> dict:
        """``first_moment``, ``second_moment``: arrays, shape (n_params,), not copies; ``step``: int."""
        return {"first_moment": self._first, "second_moment": self._second, "step": self._step}

    def load_state(self, state: Mapping) -> None:
        """Go on from a `state`; `ValueError` if its names or shapes are not this optimizer's."""
        _require_names(state, self.state)
        _load(self._xp, self._first, "first_moment", state)
        _load(self._xp, self._second, "second_moment", state)
        self._step = int(state["step"])


_KINDS = {"sgd": Sgd, "momentum": Momentum, "adam": Adam}


def make_optimizer(kind: str, n_params: int, dtype, xp, **options):
    """Return a new optimizer.

    Parameters
    ----------
    kind : {"sgd", "momentum", "adam"}
        The setting ``optimizer.kind``.
    n_params : int
        Length of gradients.
    dtype : dtype
        Of gradients, updates and state.
    xp : module
        Their array namespace.
    **options
        ``momentum`` for momentum; ``beta1``, ``beta2`` and ``epsilon`` for adam.

    Returns
    -------
    optimizer : Sgd, Momentum or Adam
        With ``update``, ``state`` and ``load_state``.

    Raises
    ------
    ConfigError
        If `kind` is unknown.
    """
    if kind not in _KINDS:
        raise ConfigError(f"`optimizer.kind` must be one of {', '.join(_KINDS)}, got {kind!r}")
    return _KINDS[kind](n_params, dtype, xp, **options)


def from_settings(settings: OptimizerConfig, n_params: int, dtype, xp):
    """Return the optimizer that the settings ask for; see `make`."""
    names = {"sgd": (), "momentum": ("momentum",), "adam": ("beta1", "beta2", "epsilon")}[settings.kind]
    return make_optimizer(settings.kind, n_params, dtype, xp, **{name: getattr(settings, name) for name in names})


def _require_names(state: Mapping, names) -> None:
    if set(state) != set(names):
        raise ValueError(f"optimizer state must hold {sorted(names)}, got {sorted(state)}")


def _load(xp, array, name: str, state: Mapping) -> None:
    value = xp.asarray(state[name], dtype=array.dtype)
    if value.shape != array.shape:
        raise ValueError(f"`{name}` of the optimizer state must have shape {array.shape}, got {value.shape}")
    array[...] = value
