"""How many steps apart exchanges have to be so that their share of the time stays under a limit."""

import math
from collections import deque
from statistics import median

LONGEST = 1024  # steps from one exchange to the next, at most: nobody starves
PROBE_EVERY = 64  # exchanges from one quiet step to the next where every step exchanges
DECIDE_EVERY = 64  # steps from one decision to the next, at least
_FIRST = 8  # steps of each kind before the first decision
_SAMPLES = 15  # that a time is the median of


class ExchangeInterval:
    """Chooses how many own updates apart exchanges are, from how long steps take with and without one.

    What an exchange costs is what `pull` and `push` take longer in a step that exchanges than in a quiet one.
    With cost `e` and a quiet step of `q` seconds, an exchange every `k` steps takes the share
    ``e / (e + k q)`` of the time. Times are medians of the last ones: a rank that another process kept from
    running is no cost of its exchanges.

    Parameters
    ----------
    max_overhead : float, ``0 < max_overhead < 1``
        What that share may be at most.

    Attributes
    ----------
    every : int
        Steps from one exchange to the next, for now: at the start 2, to see both kinds of step, and then
        `chosen`. Where that is 1, one step in a while is quiet all the same.
    chosen : int
        What was decided last.
    """

    def __init__(self, max_overhead: float):
        self._max_overhead = max_overhead
        self._quiet_s, self._exchanging_s, self._gradient_s = (deque(maxlen=_SAMPLES) for _ in range(3))
        self._n_exchanges = 0
        self._undecided = DECIDE_EVERY - 2 * _FIRST  # steps since the last decision
        self.every, self.chosen = 2, 1

    @property
    def overhead(self) -> float:
        """Share of the time that exchanges take at the chosen distance; nan before both kinds of step were seen."""
        if not (self._quiet_s and self._exchanging_s):
            return math.nan
        cost_s, quiet_s = self._costs()
        return cost_s / (cost_s + self.chosen * quiet_s)

    def record(self, exchanging: bool, exchange_s: float, gradient_s: float) -> bool:
        """Take note of a step; whether `chosen` is another now.

        Parameters
        ----------
        exchanging : bool
            Whether the step's `push`, and the `pull` behind it, exchanged.
        exchange_s, gradient_s : float, s
            What those two took, and the rest of the step.
        """
        self._gradient_s.append(gradient_s)
        (self._exchanging_s if exchanging else self._quiet_s).append(exchange_s)
        self._undecided += 1
        if not exchanging:
            return False
        self._n_exchanges += 1
        before = self.chosen
        if self._undecided >= DECIDE_EVERY and len(self._quiet_s) >= _FIRST:
            self._undecided = 0
            cost_s, quiet_s = self._costs()
            limit = self._max_overhead / (1 - self._max_overhead)
            self.chosen = min(LONGEST, max(1, math.ceil(cost_s / (limit * quiet_s))))
        probes = len(self._quiet_s) < _FIRST or (self.chosen == 1 and self._n_exchanges % PROBE_EVERY == 0)
        self.every = 2 if probes else self.chosen
        return self.chosen != before

    def _costs(self) -> tuple[float, float]:
        """Seconds that an exchange costs, and that a quiet step takes, the gradient included."""
        quiet_s = median(self._quiet_s)
        return max(0.0, median(self._exchanging_s) - quiet_s), max(1e-9, quiet_s + median(self._gradient_s))
