"""Schedules set the stepsize (learning rate) as a function of progress and staleness."""

import math
from collections.abc import Callable

from hpc_dasgd.errors import ConfigError

Schedule = Callable[[int, Callable[[], int]], float]


def make_schedule(
    kind: str,
    stepsize: float,
    horizon: int | None,
    step_every: int | None = None,
    step_factor: float = 0.1,
    concurrency: int = 1,
) -> Schedule:
    """Return the stepsize as a function of progress and staleness.

    Progress is the number of gradients of all ranks so far; a rank knows it as far as its replica holds them.
    Staleness is that of the gradient, as far as its rank knows.

    Parameters
    ----------
    kind : {"constant", "cosine", "step", "staleness-adaptive"}
        ``cosine`` falls as half a cosine wave from `stepsize` to 0 at `horizon` and stays there (Loshchilov
        and Hutter, arXiv 1608.03983, without restarts); ``step`` multiplies by `step_factor` after every
        `step_every` gradients; ``staleness-adaptive`` multiplies by ``concurrency / staleness`` where a gradient
        is staler than `concurrency` (Koloskova, Stich and Jaggi, arXiv 2206.08307, with the largest stepsize
        that their theorem on delay-adaptive stepsizes allows, ``1 / (4 L concurrency)``).
    stepsize : float
        At the start.
    horizon : int or None
        The setting ``budget.gradients``.
    step_every : int or None
        A third of `horizon` by default.
    step_factor : float
        Factor of a drop.
    concurrency : int
        Gradients under way at once: the number of ranks.

    Raises
    ------
    ConfigError
        If `kind` is unknown, or needs a horizon and there is none.
    """
    if kind == "constant":
        return lambda progress, staleness: stepsize
    if kind == "staleness-adaptive":
        return lambda progress, staleness: stepsize * min(1.0, concurrency / max(1, staleness()))
    if kind == "cosine":
        if horizon is None:
            raise ConfigError('`optimizer.schedule` = "cosine" needs `budget.gradients`')
        return lambda progress, staleness: 0.5 * stepsize * (1 + math.cos(math.pi * min(1.0, progress / horizon)))
    if kind == "step":
        if step_every is None and horizon is None:
            raise ConfigError('`optimizer.schedule` = "step" needs `optimizer.step_every` or `budget.gradients`')
        # Integers, since a third of the horizon may have no exact float.
        drops, gradients = (3, horizon) if step_every is None else (1, step_every)
        return lambda progress, staleness: stepsize * step_factor ** (drops * progress // gradients)
    raise ConfigError(f"`optimizer.schedule` must be one of constant, cosine, step, staleness-adaptive, got {kind!r}")
