"""Ranks that are slowed down on purpose, for experiments."""

from collections.abc import Iterator
from itertools import repeat

import numpy as np

from hpc_dasgd.config.settings import Config


def delays_s(config: Config, rank: int) -> Iterator[float] | None:
    """What is added to each step of a rank, in seconds, the same in every run of these settings; None for nothing."""
    straggler = config.straggler
    if rank not in straggler.ranks or not straggler.delay_ms:
        return None
    mean_s = straggler.delay_ms / 1e3
    if straggler.distribution == "constant":
        return repeat(mean_s)
    rng = np.random.default_rng([config.seed, rank])
    return (rng.exponential(mean_s) for _ in repeat(None))
