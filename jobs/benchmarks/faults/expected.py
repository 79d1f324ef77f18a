"""Expected parameters and versions, computed from the updates that they contain, without the code of the package."""

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
    """A generation: its initial versions and parameters and, if it was resumed, the optimizer states by rank."""

    number: int = 0
    n_ranks: int = MAX_RANKS
    before: np.ndarray = field(default_factory=lambda: np.zeros(MAX_RANKS, np.int64))
    x0: np.ndarray = field(default_factory=lambda: INITIAL)
    states: dict = field(default_factory=dict)


class UndamagedCheckpoint(NamedTuple):
    """An undamaged checkpoint file."""

    path: Path
    header: checkpoint_file.CheckpointHeader
    versions: np.ndarray


class ResumePoint(NamedTuple):
    """The state with which a resumed generation must begin; if `best` is None, the initial state of the run."""

    parent: int
    versions: np.ndarray
    of_rank: dict[int, UndamagedCheckpoint]
    best: UndamagedCheckpoint | None


class ExpectedRun:
    """The expected state of a run.

    Parameters
    ----------
    exchange, optimizer : str
        Names in the settings of the trial.

    Attributes
    ----------
    sums : bool
        True if a resumed run starts from the sum of contributions, False if from the replica of one rank.
    generations : dict of int to Generation
        Generations that were started, by number.
    """

    def __init__(self, exchange: str, optimizer: str):
        self._exchange, self._optimizer = exchange, optimizer
        self.sums = exchange in ("complete", "tree")
        self.generations: dict[int, Generation] = {}

    def parameters(self, generation: Generation, versions: np.ndarray) -> np.ndarray:
        """Return the initial parameters of a generation plus all updates up to `versions`."""
        share = 1 / generation.n_ranks if self._exchange == "allreduce" else 1
        ranks = range(generation.n_ranks)
        return generation.x0 + share * sum(self._walk(generation, rank, versions[rank])[0] for rank in ranks)

    def next(self, source: ResumePoint | None, number: int, n_ranks: int) -> Generation:
        """Return the generation that continues from `source`."""
        if source is None:
            return Generation(n_ranks=n_ranks)
        parent = self.generations[source.parent]
        states = {}
        for rank in range(n_ranks if source.best else 0):
            model = source.of_rank.get(rank % source.best.header.n_ranks, source.best).header
            states[rank] = self._walk(parent, model.rank, model.version)[1]
        return Generation(number, n_ranks, source.versions, self.parameters(parent, source.versions), states)

    def difference(self, found: np.ndarray, generation: Generation, versions: np.ndarray, at_end: bool) -> str:
        """Return an error text if parameters do not contain exactly `versions`, else an empty string.

        A replica of `accumulate` may contain later versions too, except at the end of the run.
        """
        expected = self.parameters(generation, versions)
        if self._optimizer != "sgd":
            wrong = ~np.isclose(found, expected, rtol=1e-9, atol=1e-6)
        elif self._exchange == "accumulate" and not at_end:
            wrong = self._lacks_updates(found, generation, versions)
        else:
            wrong = found != expected
        indices = np.flatnonzero(wrong)
        if not indices.size:
            return ""
        first = indices[0]
        return f"{indices.size} parameters are wrong; number {first} is {found[first]!r}, must be {expected[first]!r}"

    def _lacks_updates(self, found: np.ndarray, generation: Generation, versions: np.ndarray) -> np.ndarray:
        """Return True for elements that are not the sum of consecutive updates up to at least `versions`."""
        wrong = np.zeros(N_PARAMS, bool)
        for rank, updates in enumerate(UPDATES):
            own = updates.sum_to(1) > 0
            added = found - generation.x0 + updates.sum_to(generation.before[rank])
            counts = updates.counts(added, int(versions[rank]) + 3000)
            wrong[own] = counts is None or (counts < versions[rank])
        return wrong

    def _walk(self, generation: Generation, rank: int, version: int) -> tuple[np.ndarray, object]:
        """Return the sum of a rank's updates from the start of a generation to `version`, and the optimizer's state."""
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


def read_undamaged(path: Path) -> UndamagedCheckpoint:
    """Read a checkpoint that must be undamaged."""
    checkpoint_file.verify_checksum(path)
    with h5py.File(path) as file:
        versions = np.zeros(MAX_RANKS, np.int64)
        versions[: len(file["versions"])] = file["versions"][:]
    return UndamagedCheckpoint(path, checkpoint_file.read_header(path), versions)


def newest_resume_point(saved: list[UndamagedCheckpoint], run_id: str) -> ResumePoint | None:
    """Return the state in the newest complete set of checkpoints; None if there is none."""
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
        return ResumePoint(generation, versions, of_rank, best)
    return None
