"""Updates whose sums float32 represents exactly, in any order."""

import numpy as np

N_PARAMS = 150
PERIOD = 1000


class Updates:
    """The updates of one rank: random integers from `least` to `most`, which repeat after `PERIOD` versions."""

    def __init__(self, rank, least=-8, most=8):
        rows = np.random.default_rng(rank).integers(least, most + 1, (PERIOD, N_PARAMS))
        self._rows = rows.astype(np.float32)
        self._sums = np.concatenate([np.zeros((1, N_PARAMS), np.int64), np.cumsum(rows, axis=0)])

    def __getitem__(self, version):
        row = self._rows[version % PERIOD]

        def update(lo, hi, out):
            out[:] = row[lo:hi]

        return update

    def sum_to(self, version):
        """Return the exact sum of the first `version` updates."""
        return version // PERIOD * self._sums[-1] + self._sums[version % PERIOD]
