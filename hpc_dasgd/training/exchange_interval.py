"""Interval between exchanges that keeps their share of the time below a limit (``exchange.every = "auto"``)."""

import math
from collections import deque
from statistics import median

from hpc_dasgd.exchange.interface import Exchange
from hpc_dasgd.storage.log_writer import RankLog
from hpc_dasgd.training.step import Step

LONGEST = 1024  # steps between two exchanges, at most: every rank still exchanges from time to time
PROBE_EVERY = 64  # exchanges between two steps without exchange, if all other steps exchange
DECIDE_EVERY = 64  # steps between two decisions, at least
_FIRST = 8  # steps of each kind before the first decision
_SAMPLES = 15  # number of samples per median


class ExchangeInterval:
    """Chooses the number of own updates between exchanges from the measured times of steps.

    The cost of an exchange is the time that `pull` and `push` take in a step that exchanges beyond their time in a
    step that does not. With cost `e` and a step without exchange of `q` seconds, an exchange at every `k`-th step takes
    the share ``e / (e + k q)`` of the time. Times are medians of the newest samples, so that time during
    which the operating system suspends the process does not count as the cost of an exchange.

    Parameters
    ----------
    max_overhead : float, ``0 < max_overhead < 1``
        Largest share of the time that exchanges may take.

    Attributes
    ----------
    every : int
        Steps between exchanges for now: 2 at the start, to measure both kinds of step, then `chosen`. If `chosen` is 1,
        the step after every `PROBE_EVERY`-th exchange is still without exchange.
    chosen : int
        The newest decision.
    """

    def __init__(self, max_overhead: float):
        self._max_overhead = max_overhead
        self._quiet_s: deque[float] = deque(maxlen=_SAMPLES)
        self._exchanging_s: deque[float] = deque(maxlen=_SAMPLES)
        self._gradient_s: deque[float] = deque(maxlen=_SAMPLES)
        self._n_exchanges = 0
        self._undecided = DECIDE_EVERY - 2 * _FIRST  # steps since the last decision
        self.every, self.chosen = 2, 1

    @property
    def overhead(self) -> float:
        """Share of the time that exchanges take at the chosen interval; nan before both kinds of step are measured."""
        if not (self._quiet_s and self._exchanging_s):
            return math.nan
        cost_s, quiet_s = self._costs()
        return cost_s / (cost_s + self.chosen * quiet_s)

    def record(self, exchanging: bool, exchange_s: float, gradient_s: float) -> bool:
        """Record the times of a step.

        Parameters
        ----------
        exchanging : bool
            Whether the `push` of the step, and the `pull` after it, exchanged.
        exchange_s, gradient_s : float, s
            Time of these two calls, and of the rest of the step.

        Returns
        -------
        changed : bool
            True if `chosen` has changed.
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
        """Return the cost of an exchange and the time of a step without exchange, the gradient included, in s."""
        quiet_s = median(self._quiet_s)
        return max(0.0, median(self._exchanging_s) - quiet_s), max(1e-9, quiet_s + median(self._gradient_s))


class IntervalTuner:
    """Measures the steps of one rank and sets the interval of its exchange.

    Parameters
    ----------
    exchange : Exchange
        Its attribute `every` is set.
    log : RankLog
        Changes of the interval are logged.
    max_overhead : float
        See `ExchangeInterval`.
    """

    def __init__(self, exchange: Exchange, log: RankLog, max_overhead: float):
        self._exchange, self._log, self._interval = exchange, log, ExchangeInterval(max_overhead)
        self._push_s = self._gradient_s = 0.0

    def note_step(self, step: Step) -> None:
        """Store the times of a step after its `push`; the `pull` after it belongs to the same exchange."""
        self._push_s, self._gradient_s = step.pushed_s - step.computed_s, step.computed_s - step.begun_s

    def record(self, pull_s: float, now_s: float) -> None:
        """Record a `pull`, which completes the exchange of the step before it, and set the interval."""
        if not self._exchange.made:
            return
        interval = self._interval
        if interval.record(self._exchange.exchanging, self._push_s + pull_s, self._gradient_s):
            self._log.append_interval(now_s, self._exchange.made, interval.chosen, interval.overhead)
        self._exchange.every = interval.every
