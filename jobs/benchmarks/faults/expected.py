"""What parameters and versions must be, from which updates are in them; written apart from the package's own code."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import h5py
import numpy as np

from hpc_dasgd.storage import checkpoint_file
from jobs.benchmarks.faults.counted import INITIAL, MAX_RANKS, N_PARAMS, Updates

UPDATES = [Updates(rank) for rank in range(MAX_RANKS)]
STEPSIZES = {"sgd": 1.0, "momentum": 1.0, "adam": 0.5}


@dataclass
class Generation:
    """A start of the run: where it began; `states` are those of the optimizers, by rank, none where they begin."""

    number: int = 0
    n_ranks: int = MAX_RANKS
    before: np.ndarray = field(default_factory=lambda: np.zeros(MAX_RANKS, np.int64))
    x0: np.ndarray = field(default_factory=lambda: INITIAL)
    states: dict = field(default_factory=dict)


class Saved(NamedTuple):
    """A good checkpoint file."""

    path: Path
    header: checkpoint_file.CheckpointHeader
    versions: np.ndarray


class Source(NamedTuple):
    """What a resumed generation must begin with; without a best one as the first began."""

    parent: int
    versions: np.ndarray
    of_rank: dict[int, Saved]
    best: Saved | None


class Model:
    """The run as it has to be.

    Parameters
    ----------
    exchange, optimizer : str

    Attributes
    ----------
    sums : bool
        Whether parameters are resumed as the sum of contributions, not as the replica of one rank.
    """

    def __init__(self, exchange: str, optimizer: str):
        self._exchange, self._optimizer = exchange, optimizer
        self.sums = exchange in ("complete", "tree")
        self.generations: dict[int, Generation] = {}

    def parameters(self, generation: Generation, versions: np.ndarray) -> np.ndarray:
        """The first parameters of a generation, and what was added up to `versions`."""
        share = 1 / generation.n_ranks if self._exchange == "allreduce" else 1
        ranks = range(generation.n_ranks)
        return generation.x0 + share * sum(self._walk(generation, rank, versions[rank])[0] for rank in ranks)

    def next(self, source: Source | None, number: int, n_ranks: int) -> Generation:
        """The generation that goes on from `source`."""
        if source is None:
            return Generation(n_ranks=n_ranks)
        parent = self.generations[source.parent]
        states = {}
        for rank in range(n_ranks if source.best else 0):
            model = source.of_rank.get(rank % source.best.header.n_ranks, source.best).header
            states[rank] = self._walk(parent, model.rank, model.version)[1]
        return Generation(number, n_ranks, source.versions, self.parameters(parent, source.versions), states)

    def difference(self, found: np.ndarray, generation: Generation, versions: np.ndarray, at_end: bool) -> str:
        """In which way parameters are wrong that should hold `versions`; empty where they are right.

        Of a replica of `accumulate`, but at the end, the versions are the least that it holds.
        """
        expected = self.parameters(generation, versions)
        if self._optimizer != "sgd":
            wrong = ~np.isclose(found, expected, rtol=1e-9, atol=1e-6)
        elif self._exchange == "accumulate" and not at_end:
            wrong = self._beyond_what_arrived(found, generation, versions)
        else:
            wrong = found != expected
        where = np.flatnonzero(wrong)
        if not where.size:
            return ""
        first = where[0]
        return f"{where.size} parameters are wrong; number {first} is {found[first]!r}, must be {expected[first]!r}"

    def _beyond_what_arrived(self, found: np.ndarray, generation: Generation, versions: np.ndarray) -> np.ndarray:
        """Elements that do not hold these versions and perhaps later ones, whole ones and in order."""
        wrong = np.zeros(N_PARAMS, bool)
        for rank, updates in enumerate(UPDATES):
            own = updates.sum_to(1) > 0
            added = found - generation.x0 + updates.sum_to(generation.before[rank])
            counts = updates.counts(added, int(versions[rank]) + 3000)
            wrong[own] = counts is None or (counts < versions[rank])
        return wrong

    def _walk(self, generation: Generation, rank: int, version: int) -> tuple[np.ndarray, object]:
        """The sum of a rank's updates from the start of a generation to `version`, and its optimizer's state then."""
        first, state = int(generation.before[rank]), generation.states.get(rank)
        if self._optimizer == "sgd":
            return UPDATES[rank].sum_to(version) - UPDATES[rank].sum_to(first), None
        total, stepsize = np.zeros(N_PARAMS), STEPSIZES[self._optimizer]
        for each in range(first, version):
            gradient = -UPDATES[rank][each]
            if self._optimizer == "momentum":
                state = gradient if state is None else 0.9 * state + gradient
                total -= stepsize * state
            else:
                m, v, t = (0.0, 0.0, 0) if state is None else state
                m, v, t = 0.9 * m + 0.1 * gradient, 0.999 * v + 0.001 * gradient**2, t + 1
                state = m, v, t
                total -= stepsize * (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
        return total, state


def read_saved(path: Path) -> Saved:
    """Read a checkpoint that must be good."""
    checkpoint_file.verify_checksum(path)
    with h5py.File(path) as file:
        versions = np.zeros(MAX_RANKS, np.int64)
        versions[: len(file["versions"])] = file["versions"][:]
    return Saved(path, checkpoint_file.read_header(path), versions)


def source(saved: list[Saved], run_id: str) -> Source | None:
    """The newest set of checkpoints that is whole; None where there is none."""
    for generation in sorted({each.header.generation for each in saved}, reverse=True):
        of_rank = {}
        for each in saved:
            header = each.header
            if (header.generation, header.run_id) == (generation, run_id) and (
                header.rank not in of_rank or header.t_s > of_rank[header.rank].header.t_s
            ):
                of_rank[header.rank] = each
        contributing = [each for each in of_rank.values() if each.header.contributes]
        header = next(iter(of_rank.values())).header
        if not contributing or (header.combines == "sum" and len(of_rank) < header.n_ranks):
            continue
        best = max(contributing, key=lambda each: (each.header.gradients, -each.header.rank))
        versions = best.versions.copy()
        if header.combines == "sum":
            for rank, each in of_rank.items():
                versions[rank] = each.header.version
        return Source(generation, versions, of_rank, best)
    return None
