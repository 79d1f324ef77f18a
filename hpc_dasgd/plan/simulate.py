"""A run without exchange or by exchange `read`, simulated event by event: how fast, how stale. Needs no MPI.

Each rank repeats the step of `training.train`: read on (`pull`), compute a gradient at what is then held, which
completes it; read on once more, store the update and publish (`push`). Time passes between the events and nothing
else is computed, so that a step costs microseconds. Since nobody waits, nothing here depends on parameters.

Left out: dropped reads, publications that slow readers ask to be rarer, and reads that arrive at a later step
(`reads_in_flight`): here a rank waits until a read is through. Where a node has more ranks than cores, they take turns
in slices as `cores` says, a simple picture of what an operating system does. ``S_avg`` on the complete overlay hardly
depends on it: a completed gradient is missed by as many others as are between reading and completing, on average,
whoever has a core (Little's law). Throughput, ``S_max`` and trees do.
"""

import math
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from random import Random

import numpy as np

from hpc_dasgd.config.settings import StragglerConfig
from hpc_dasgd.plan.cores import turns
from hpc_dasgd.plan.publications import Complete, Tree

EXACT_RANKS = 4096  # up to here the updates of all ranks are followed, beyond it
SAMPLED_SOURCES = 256  # those of so many ranks drawn at random
LOG_S = 4e-6  # from a publication to the next look at the neighbours: the log, as measured; all else comes before
MEASURED_STEPS = 20  # that exchange, of each rank, on average, at least
MEASURED_GRADIENTS = 20_000  # at least
MOST_GRADIENTS = 10_000_000
_REACH_ENTRIES = 1 << 26


@dataclass(frozen=True)
class Setup:
    """What is simulated.

    Attributes
    ----------
    nodes : sequence of int
        The node that each rank runs on.
    neighbours : list of tuple of int, or None
        Of each rank on a tree; None for the complete overlay. Empty tuples: nobody exchanges.
    compute_s, overhead_s : sequence of lists of float, s
        Time of a gradient, and of all in a step that is neither that nor the following: values to draw from with
        equal chances, a list for each rank or one for all. All times are for a core of one's own.
    pass_s : float
        One pass over an array of `n_params`.
    ask_s : float
        To ask a neighbour on the same node whether there are news.
    payload_bytes : int
        Of a publication.
    cores : int
        Of a node. A straggler that sleeps needs none.
    latency_s, bytes_per_s : float
        Of a read across nodes. Reads within a node are passes over memory.
    every : int
    straggler : StragglerConfig
    """

    nodes: Sequence[int]
    neighbours: list[tuple[int, ...]] | None
    compute_s: Sequence[list[float]]
    overhead_s: Sequence[list[float]] = ([0.0],)
    pass_s: float = 0.0
    ask_s: float = 0.0
    payload_bytes: int = 0
    cores: int = 1 << 30
    latency_s: float = 0.0
    bytes_per_s: float = math.inf
    every: int = 1
    straggler: StragglerConfig = field(default_factory=StragglerConfig)


@dataclass(frozen=True, eq=False)
class Forecast:
    """What a simulated run came to, once it was settled.

    Attributes
    ----------
    staleness : ndarray, shape (n_gradients,), float64
        ``S_t`` in the global order; where sources were sampled, estimates, the spread of which is too wide.
    seconds : float
        In which these gradients were completed.
    W_max : float or None
        Largest reach of the gradients of the followed sources; None where it would take too much memory.
    read_bytes, read_bytes_across : float
        By all ranks, and of these across nodes.
    n_links : int
        Pairs (reader, read).
    n_ranks, n_sources : int
        Ranks, and those of them whose updates were followed.
    n_dropped : int
        Gradients before the run was settled; 0 where the budget allows for no more than settling.
    """

    staleness: np.ndarray
    seconds: float
    W_max: float | None
    read_bytes: float
    read_bytes_across: float
    n_links: int
    n_ranks: int
    n_sources: int
    n_dropped: int


def store_passes(n_neighbours: int, inner: bool) -> int:
    """Passes over memory in `push` apart from reading; see `exchange.read.ReadExchange`."""
    return (2 if inner else 1) * n_neighbours + 4


def sum_passes(n_neighbours: int) -> int:
    """Passes over memory in `pull` where news came, apart from reading them."""
    return n_neighbours + 2


READ_PASSES = 2  # for each neighbour with news


def simulate(setup: Setup, budget: int | None = None, seed: int = 0, *, starts_s=None, n_sources=None) -> Forecast:
    """Simulate a run until it is settled, and then `MEASURED_STEPS` exchanging steps of each rank.

    Up to `EXACT_RANKS` ranks the staleness is exact. Beyond that the updates of `SAMPLED_SOURCES` ranks, drawn at
    random, are followed through all ranks, and what is missed of them is scaled by the number of ranks.

    Parameters
    ----------
    setup : Setup
    budget : int, optional
        Gradients of the run. Where that is less than would be simulated, the whole run is, its start included.
    seed : int
    starts_s : sequence of float, optional
        When each rank begins; by default somewhere within a step.
    n_sources : int, optional
        In place of the rule above.
    """
    n_ranks = len(setup.nodes)
    warm_up = _settling_steps(setup.neighbours) * setup.every * n_ranks
    measured = MEASURED_STEPS * setup.every * n_ranks
    total = min(warm_up + max(measured, MEASURED_GRADIENTS), MOST_GRADIENTS, budget or MOST_GRADIENTS)
    if total < warm_up + measured or not _exchanges(setup):
        warm_up = 0
    n_sources = n_sources or (n_ranks if n_ranks <= EXACT_RANKS else SAMPLED_SOURCES)
    return _Simulation(setup, seed, starts_s, n_sources).run(warm_up, total)


def _exchanges(setup: Setup) -> bool:
    return setup.neighbours is None or any(setup.neighbours)


def _settling_steps(neighbours) -> int:
    """Exchanging steps of each rank until news from the start are everywhere, and a few.

    On a tree news go one edge on when the next rank pushes, half a step later on average; of the diameter, which is
    at most twice the depth, this takes three quarters.
    """
    if neighbours is None:
        return 3
    distance, ahead = {0: 0}, deque([0])
    while ahead:
        rank = ahead.popleft()
        for other in neighbours[rank]:
            if other not in distance:
                distance[other] = distance[rank] + 1
                ahead.append(other)
    return 3 * max(distance.values()) // 2 + 3


class _Simulation:
    def __init__(self, setup: Setup, seed: int, starts_s, n_sources: int):
        n_ranks = len(setup.nodes)
        rng = np.random.default_rng(seed)
        sources = np.sort(rng.choice(n_ranks, n_sources, replace=False))
        self._setup, self._random = setup, Random(seed)
        self._overlay = (
            Complete(setup.nodes, sources)
            if setup.neighbours is None
            else Tree(setup.nodes, setup.neighbours, sources.size)
        )
        self._column = np.full(n_ranks, -1)
        self._column[sources] = range(n_sources)
        self._column = self._column.tolist()
        self._held = np.zeros((n_ranks, n_sources), np.int32)
        self._completed = np.zeros(n_sources, np.int32)
        self._starts_s = starts_s
        self._reach = _Reach(n_sources)
        self._staleness = []
        self._read_bytes = self._read_bytes_across = 0.0

    def run(self, warm_up: int, total: int) -> Forecast:
        """Let time go on from event to event, until `total` gradients are completed."""
        setup = self._setup
        n_ranks = len(setup.nodes)
        since_s, read_before = 0.0, (0.0, 0.0)
        settled = warm_up == 0
        for now_s in turns([self._rank(rank) for rank in range(n_ranks)], setup.nodes, setup.cores):
            if not settled and len(self._staleness) >= warm_up:
                settled, since_s = True, now_s
                read_before = self._read_bytes, self._read_bytes_across
            if len(self._staleness) >= total:
                break
        return Forecast(
            staleness=np.array(self._staleness[warm_up:]),
            seconds=now_s - since_s,
            W_max=self._reach.largest(),
            read_bytes=self._read_bytes - read_before[0],
            read_bytes_across=self._read_bytes_across - read_before[1],
            n_links=self._overlay.n_links,
            n_ranks=n_ranks,
            n_sources=self._completed.size,
            n_dropped=warm_up,
        )

    def _rank(self, rank: int) -> Iterator[tuple[float, bool]]:
        """The life of a rank, as `cores.turns` takes it."""
        setup, overlay, own, held = self._setup, self._overlay, self._column[rank], self._held[rank]
        compute_s, overhead_s = (times[rank % len(times)] for times in (setup.compute_s, setup.overhead_s))
        degree, inner = overlay.degree(rank)
        slow = rank in setup.straggler.ranks and setup.straggler.delay_ms > 0
        first_s = self._random.random() * self._draw(compute_s) if self._starts_s is None else self._starts_s[rank]
        yield first_s, False
        exchanging = True
        made = 0
        while True:
            if exchanging:
                news = yield from self._read(rank)
                if news:
                    yield sum_passes(degree) * setup.pass_s, True
            yield self._draw(compute_s), True
            if slow:
                yield self._delay_s(), False
            self._complete(rank)
            made += 1
            exchanging = made % setup.every == 0
            own_s = self._draw(overhead_s)
            behind_s = min(LOG_S, own_s)
            if exchanging:
                yield from self._read(rank)
            yield store_passes(degree, inner) * setup.pass_s + own_s - behind_s, True
            if exchanging:
                if own >= 0:
                    held[own] = made
                overlay.publish(rank, own, held)
            yield behind_s, True

    def _read(self, rank: int):
        """Read on; yields the time that takes, returns whether there were news."""
        setup = self._setup
        any_news = False
        for n_asked, n_news, across in self._overlay.read(rank, self._column[rank], self._held[rank]):
            any_news |= n_news > 0
            within_s = (1 - across) * (n_asked * setup.ask_s + n_news * READ_PASSES * setup.pass_s)
            n_bytes = n_news * setup.payload_bytes
            across_s = across * ((n_asked + n_news) * setup.latency_s + n_bytes / setup.bytes_per_s)
            self._read_bytes += n_bytes
            self._read_bytes_across += across * n_bytes
            yield within_s + across_s, True
        return any_news

    def _complete(self, rank: int) -> None:
        """Count a gradient that was taken at what `rank` holds now, and what it missed."""
        own, completed = self._column[rank], self._completed
        held = self._held[rank].copy()
        n_others = held.size
        if own >= 0:
            held[own] = completed[own]
            n_others -= 1
        missed = int((completed - held).sum())
        staleness = missed * (len(self._setup.nodes) - 1) / n_others if n_others else 0.0
        self._staleness.append(staleness)
        self._reach.add(held, completed, staleness)
        if own >= 0:
            completed[own] += 1

    def _draw(self, values: list[float]) -> float:
        return values[int(self._random.random() * len(values))]

    def _delay_s(self) -> float:
        mean_s = self._setup.straggler.delay_ms / 1e3
        return mean_s if self._setup.straggler.distribution == "constant" else self._random.expovariate(1 / mean_s)


class _Reach:
    """The reach ``W_s`` of the gradients of the followed sources, as sums of differences over their indices."""

    def __init__(self, n_sources: int):
        self._differences = np.zeros((n_sources, 64))
        self._begin = np.arange(n_sources) * 64

    def add(self, held: np.ndarray, completed: np.ndarray, staleness: float) -> None:
        """Add `staleness` to the reach of all that is completed and not held."""
        if self._differences is None:
            return
        n_sources, n_columns = self._differences.shape
        if completed.max() >= n_columns:
            if 2 * self._differences.size > _REACH_ENTRIES:
                self._differences = None
                return
            self._differences = np.hstack([self._differences, np.zeros((n_sources, n_columns))])
            self._begin = np.arange(n_sources) * 2 * n_columns
        flat = self._differences.reshape(-1)
        flat[self._begin + held] += staleness
        flat[self._begin + completed] -= staleness

    def largest(self) -> float | None:
        """``W_max``; None where there were too many gradients of one source to follow."""
        return None if self._differences is None else float(np.cumsum(self._differences, axis=1).max())
