"""Schedules, which set the stepsize (learning rate) of each gradient."""

import math
from collections.abc import Callable
from typing import TypeAlias

from hpc_dasgd.errors import ConfigError

Schedule: TypeAlias = Callable[[int, Callable[[], int]], float]
"""The stepsize as a function of progress and staleness: ``stepsize_at(progress, staleness)``.

`staleness` is a function without arguments, since computing it costs time: only schedules that depend on the staleness
call it.
"""


def make_schedule(
    kind: str,
    stepsize: float,
    horizon: int | None,
    step_every: int | None = None,
    step_factor: float = 0.1,
    concurrency: int = 1,
) -> Schedule:
    """Return the stepsize as a function of progress and staleness.

    Progress is the number of gradients of all ranks that the replica contains. Staleness is that of the gradient, as
    far as its rank can know it (see "Definitions" in ``docs/theory.md``).

    Parameters
    ----------
    kind : {"constant", "cosine", "step", "staleness-adaptive"}
        "constant" returns `stepsize`. "cosine" decreases as half a cosine wave from `stepsize` to 0 at `horizon`,
        and remains 0 (Loshchilov and Hutter, arXiv 1608.03983, without restarts). "step" multiplies by `step_factor`
        after every `step_every` gradients. "staleness-adaptive" multiplies by ``concurrency / staleness`` if the
        staleness exceeds `concurrency` (Koloskova, Stich and Jaggi, arXiv 2206.08307, whose theorem on delay-adaptive
        stepsizes allows at most ``1 / (4 L concurrency)`` for `stepsize`).
    stepsize : float
        Initial stepsize.
    horizon : int or None
        The setting ``budget.gradients``: number of gradients of all ranks in the whole run.
    step_every : int or None
        Number of gradients between two steps; a third of `horizon` by default.
    step_factor : float
        Factor of each step.
    concurrency : int
        Number of gradients that are computed at the same time, which is the number of ranks.

    Returns
    -------
    stepsize_at : Schedule

    Raises
    ------
    ConfigError
        If `kind` is unknown, or needs `horizon` and it is None.

    Examples
    --------
    >>> stepsize_at = make_schedule("cosine", 0.4, 100)
    >>> round(stepsize_at(50, lambda: 0), 3), stepsize_at(100, lambda: 0)
    (0.2, 0.0)
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
        return _step_schedule(stepsize, horizon, step_every, step_factor)
    raise ConfigError(f"`optimizer.schedule` must be one of constant, cosine, step, staleness-adaptive, got {kind!r}")


def _step_schedule(stepsize: float, horizon: int | None, step_every: int | None, step_factor: float) -> Schedule:
    # In integers, since a third of the horizon need not be an exact float.
    if step_every is not None:
        n_steps, n_gradients = 1, step_every
    elif horizon is not None:
        n_steps, n_gradients = 3, horizon
    else:
        raise ConfigError('`optimizer.schedule` = "step" needs `optimizer.step_every` or `budget.gradients`')
    return lambda progress, staleness: stepsize * step_factor ** (n_steps * progress // n_gradients)
