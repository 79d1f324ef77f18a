"""Discrete-event simulation of a run with exchange `read` or without exchange: throughput and staleness. No MPI.

Each rank repeats the step of ``training/loop.py``: read from its neighbours (`pull`), compute a gradient, read once
more, store the update and publish it (`push`). Only version vectors and times are simulated, which takes microseconds
per step. Since no rank waits for another, the events do not depend on the parameters.

The model leaves out dropped reads, owners that publish less often for slow readers, and reads that complete in a later
step (``exchange.reads_in_flight``): a simulated rank waits until a read is complete. If a node has more ranks than
cores, the ranks share the cores in time slices as in `cores`, a simple model of an operating system. ``S_avg`` on the
complete overlay hardly depends on it: on average, a gradient misses as many gradients as there are other ranks between
reading and completing a gradient (Little's law). Throughput, ``S_max`` and trees do depend on it.
"""

import math
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, field
from random import Random

import numpy as np

from hpc_dasgd.arrays.types import Float64s
from hpc_dasgd.config.settings import StragglerConfig
from hpc_dasgd.plan.cores import Activity, share_cores
from hpc_dasgd.plan.publications import CompleteOverlay, Overlay, TreeOverlay
from hpc_dasgd.plan.reach import ReachRecord

EXACT_RANKS = 4096  # largest number of ranks for which the updates of all ranks are counted
SAMPLED_SOURCES = 256  # with more ranks, number of ranks, drawn at random, whose updates are counted
LOG_S = 4e-6  # time of logging, the only work between a publication and the next read; measured
MEASURED_STEPS = 20  # least number of steps with an exchange per rank that are measured, on average
MEASURED_GRADIENTS = 20_000  # least number of gradients that are measured
MOST_GRADIENTS = 10_000_000
READ_PASSES = 2  # passes over memory for each new publication


@dataclass(frozen=True)
class SimulationSetup:
    """Setup of a simulation.

    Attributes
    ----------
    nodes : sequence of int
        Node of each rank.
    neighbours : list of tuple of int, or None
        Neighbours of each rank on a tree; None for the complete overlay. Empty tuples if ranks do not exchange.
    compute_s, overhead_s : sequence of lists of float, s
        Times of a gradient, and of the remaining work of a step, to draw from with equal probability: one list for
        each rank, or one for all. They are times of a rank that has a core of its own.
    pass_s : float, s
        Time of one pass over an array of the size of the model.
    poll_s : float, s
        Time to check a neighbour on the same node for a new publication.
    payload_bytes : int
        Size of a publication.
    cores : int
        Number of cores of a node. A delayed straggler does not use its core.
    latency_s : float, s
        Latency of a read across nodes.
    bytes_per_s : float, bytes/s
        Bandwidth of a read across nodes. Reads within a node are passes over memory.
    every : int
        Number of steps between exchanges.
    straggler : StragglerConfig
        Ranks that are delayed, and their delays.
    """

    nodes: Sequence[int]
    neighbours: list[tuple[int, ...]] | None
    compute_s: Sequence[list[float]]
    overhead_s: Sequence[list[float]] = ([0.0],)
    pass_s: float = 0.0
    poll_s: float = 0.0
    payload_bytes: int = 0
    cores: int = 1 << 30
    latency_s: float = 0.0
    bytes_per_s: float = math.inf
    every: int = 1
    straggler: StragglerConfig = field(default_factory=StragglerConfig)

    @property
    def exchanges(self) -> bool:
        """Whether any rank reads from another."""
        return self.neighbours is None or any(self.neighbours)


@dataclass(frozen=True, eq=False)
class SimulationResult:
    """Result of a simulation, measured after the warm-up.

    Attributes
    ----------
    staleness : ndarray, shape (n_gradients,), float64
        ``S_t`` in the global order. Estimates, with too large a variance, if not all ranks are sources.
    seconds : float, s
        Simulated time in which these gradients were completed.
    W_max : float or None
        Largest reach of the gradients of the sources (``docs/theory.md``); None if it would need too much memory.
    read_bytes, read_bytes_across : float, bytes
        Amount of data read by all ranks, and the part of it that was read across nodes.
    n_links : int
        Number of pairs of a reader and the rank that it reads.
    n_ranks, n_sources : int
        Number of ranks, and of ranks whose updates were counted.
    n_warm_up : int
        Number of gradients of the warm-up; 0 if the budget does not allow for one.
    """

    staleness: Float64s
    seconds: float
    W_max: float | None
    read_bytes: float
    read_bytes_across: float
    n_links: int
    n_ranks: int
    n_sources: int
    n_warm_up: int


def store_passes(n_neighbours: int, inner: bool) -> int:
    """Return the number of passes over memory in `push`, reads excluded; see ``exchange/read/exchange.py``."""
    return (2 if inner else 1) * n_neighbours + 4


def sum_passes(n_neighbours: int) -> int:
    """Return the number of passes over memory in `pull` after new publications were read, reads excluded."""
    return n_neighbours + 2


def simulate(
    setup: SimulationSetup,
    budget: int | None = None,
    seed: int = 0,
    *,
    starts_s: Sequence[float] | None = None,
    n_sources: int | None = None,
) -> SimulationResult:
    """Simulate the warm-up of a run, and then `MEASURED_STEPS` steps with an exchange of each rank.

    With at most `EXACT_RANKS` ranks the staleness is exact. With more, the updates of `SAMPLED_SOURCES` ranks, drawn
    at random, are counted, and what a gradient missed of them is scaled to all ranks.

    Parameters
    ----------
    setup : SimulationSetup
    budget : int, optional
        Number of gradients of the run. If it is too small for a warm-up, the whole run is simulated and measured.
    seed : int
        Seed of the simulation.
    starts_s : sequence of float, s, optional
        Time at which each rank starts; by default at random within a step.
    n_sources : int, optional
        Number of ranks whose updates are counted, in place of the rule above.

    Returns
    -------
    result : SimulationResult
    """
    n_ranks = len(setup.nodes)
    warm_up = _warm_up_steps(setup.neighbours) * setup.every * n_ranks
    measured = MEASURED_STEPS * setup.every * n_ranks
    total = min(warm_up + max(measured, MEASURED_GRADIENTS), MOST_GRADIENTS, budget or MOST_GRADIENTS)
    if total < warm_up + measured or not setup.exchanges:
        warm_up = 0
    n_sources = n_sources or (n_ranks if n_ranks <= EXACT_RANKS else SAMPLED_SOURCES)
    return _Simulation(setup, seed, starts_s, n_sources).run(warm_up, total)


def _warm_up_steps(neighbours: Sequence[tuple[int, ...]] | None) -> int:
    """Return the number of exchanges per rank until updates of the first step have reached all ranks, with a margin.

    On a tree updates move by one edge when the next rank pushes, half a step later on average. The diameter is at most
    twice the depth, so that this takes at most as many steps as the depth; half of that is added as a margin.
    """
    if neighbours is None:
        return 3
    distance, queue = {0: 0}, deque([0])
    while queue:
        rank = queue.popleft()
        for other in neighbours[rank]:
            if other not in distance:
                distance[other] = distance[rank] + 1
                queue.append(other)
    return 3 * max(distance.values()) // 2 + 3


class _Simulation:
    """State of a simulation: version vectors, and counts of gradients and bytes."""

    def __init__(self, setup: SimulationSetup, seed: int, starts_s: Sequence[float] | None, n_sources: int) -> None:
        n_ranks = len(setup.nodes)
        sources = np.sort(np.random.default_rng(seed).choice(n_ranks, n_sources, replace=False))
        self._setup, self._random, self._starts_s = setup, Random(seed), starts_s
        self._overlay: Overlay = (
            CompleteOverlay(setup.nodes, sources)
            if setup.neighbours is None
            else TreeOverlay(setup.nodes, setup.neighbours, n_sources)
        )
        columns = np.full(n_ranks, -1)
        columns[sources] = range(n_sources)
        self._columns: list[int] = columns.tolist()
        self._vectors = np.zeros((n_ranks, n_sources), np.int32)
        self._completed = np.zeros(n_sources, np.int32)
        self._reach = ReachRecord(n_sources)
        self._staleness: list[float] = []
        self._read_bytes = self._read_bytes_across = 0.0

    def run(self, warm_up: int, total: int) -> SimulationResult:
        """Simulate until `total` gradients are complete, and measure after the first `warm_up`."""
        setup = self._setup
        n_ranks = len(setup.nodes)
        now_s, since_s, read_before = 0.0, 0.0, (0.0, 0.0)
        measuring = warm_up == 0
        for now_s in share_cores([self._process(rank) for rank in range(n_ranks)], setup.nodes, setup.cores):
            if not measuring and len(self._staleness) >= warm_up:
                measuring, since_s = True, now_s
                read_before = self._read_bytes, self._read_bytes_across
            if len(self._staleness) >= total:
                break
        return SimulationResult(
            staleness=np.array(self._staleness[warm_up:]),
            seconds=now_s - since_s,
            W_max=self._reach.largest(),
            read_bytes=self._read_bytes - read_before[0],
            read_bytes_across=self._read_bytes_across - read_before[1],
            n_links=self._overlay.n_links,
            n_ranks=n_ranks,
            n_sources=self._completed.size,
            n_warm_up=warm_up,
        )

    def _process(self, rank: int) -> Iterator[Activity]:
        """Yield the activities of a rank, as `share_cores` expects them."""
        setup, overlay, column, vector = self._setup, self._overlay, self._columns[rank], self._vectors[rank]
        compute_s, overhead_s = (times[rank % len(times)] for times in (setup.compute_s, setup.overhead_s))
        degree, inner = overlay.degree(rank)
        is_slow = rank in setup.straggler.ranks and setup.straggler.delay_ms > 0
        start_s = self._random.random() * self._draw(compute_s) if self._starts_s is None else self._starts_s[rank]
        yield start_s, False
        exchanging = True
        n_completed = 0
        while True:
            if exchanging:
                any_new = yield from self._read(rank)
                if any_new:
                    yield sum_passes(degree) * setup.pass_s, True
            yield self._draw(compute_s), True
            if is_slow:
                yield self._delay_s(), False
            self._complete(rank)
            n_completed += 1
            exchanging = n_completed % setup.every == 0
            step_overhead_s = self._draw(overhead_s)
            log_s = min(LOG_S, step_overhead_s)
            if exchanging:
                yield from self._read(rank)
            yield store_passes(degree, inner) * setup.pass_s + step_overhead_s - log_s, True
            if exchanging:
                if column >= 0:
                    vector[column] = n_completed
                overlay.publish(rank, column, vector)
            yield log_s, True

    def _read(self, rank: int) -> Generator[Activity, None, bool]:
        """Yield the activities of reading from the neighbours of a rank; return whether there was a new publication."""
        setup = self._setup
        any_new = False
        for n_polled, n_new, across in self._overlay.read(rank, self._columns[rank], self._vectors[rank]):
            any_new |= n_new > 0
            within_s = (1 - across) * (n_polled * setup.poll_s + n_new * READ_PASSES * setup.pass_s)
            n_bytes = n_new * setup.payload_bytes
            across_s = across * ((n_polled + n_new) * setup.latency_s + n_bytes / setup.bytes_per_s)
            self._read_bytes += n_bytes
            self._read_bytes_across += across * n_bytes
            yield within_s + across_s, True
        return any_new

    def _complete(self, rank: int) -> None:
        """Count a gradient that was computed with the present version vector of a rank, and record what it missed."""
        column, completed = self._columns[rank], self._completed
        vector = self._vectors[rank].copy()
        n_others = vector.size
        if column >= 0:
            vector[column] = completed[column]
            n_others -= 1
        missed = int((completed - vector).sum())
        staleness = missed * (len(self._setup.nodes) - 1) / n_others if n_others else 0.0
        self._staleness.append(staleness)
        self._reach.add(vector, completed, staleness)
        if column >= 0:
            completed[column] += 1

    def _draw(self, values: Sequence[float]) -> float:
        return values[int(self._random.random() * len(values))]

    def _delay_s(self) -> float:
        mean_s = self._setup.straggler.delay_ms / 1e3
        return mean_s if self._setup.straggler.distribution == "constant" else self._random.expovariate(1 / mean_s)
