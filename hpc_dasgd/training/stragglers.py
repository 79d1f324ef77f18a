"""Stragglers: ranks that are slowed down on purpose, for experiments."""

from collections.abc import Iterator
from itertools import repeat

import numpy as np

from hpc_dasgd.config.settings import Config


def delays_s(config: Config, rank: int) -> Iterator[float] | None:
    """Return the delays that are added to the steps of a rank, the same in every run with these settings.

    Parameters
    ----------
    config : Config
    rank : int

    Returns
    -------
    delays_s : iterator of float, s, or None
        One delay per step; None if the rank is not slowed down.
    """
    straggler = config.straggler
    if rank not in straggler.ranks or not straggler.delay_ms:
        return None
    mean_s = straggler.delay_ms / 1e3
    if straggler.distribution == "constant":
        return repeat(mean_s)
    rng = np.random.default_rng([config.seed, rank])
    return (rng.exponential(mean_s) for _ in repeat(None))
