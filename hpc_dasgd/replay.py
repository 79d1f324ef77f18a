"""Recomputing a run of exchange `read`, one gradient after another, from its log. Needs no MPI.

A replica is a function of its version vector, an update one of the replica it was taken at, and the log holds
the vectors: the asynchronous run is therefore recomputed by a single process, in any order that respects
causality, down to the last bit.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from hpc_dasgd import machine, optimizers, topology
from hpc_dasgd.analysis import Run
from hpc_dasgd.batches import Sampler
from hpc_dasgd.data import Dataset
from hpc_dasgd.errors import ConfigError
from hpc_dasgd.partial_sums import sum_edges, sum_replica
from hpc_dasgd.versions import walk

_SHOWN_RANKS = 32
_CHANGES_BITS = ("cpu", "blas", "blas_threads", "numpy_version")


@dataclass(frozen=True, eq=False)
class Moment:
    """A replica at one moment of the run.

    Attributes
    ----------
    parameters : ndarray, shape (n_params,)
    versions : ndarray, shape (n_ranks,), int64
        Updates of each rank in it.
    gradient : ndarray, shape (n_params,), or None
        Taken at `parameters`; None where none was asked for.
    loss : float
        Of the batch the gradient is of; nan without one.
    differences : list of str
        As of `Replayed`; of a run that was killed, logs may lack updates that replicas held.
    """

    parameters: np.ndarray
    versions: np.ndarray
    gradient: np.ndarray | None = None
    loss: float = math.nan
    differences: list[str] = field(default_factory=list)


@dataclass(frozen=True, eq=False)
class Replayed:
    """What a replay came to.

    Attributes
    ----------
    n_gradients : int
        Recomputed.
    parameters : ndarray, shape (n_params,)
        Behind the last of them, summed as rank 0 does.
    agrees : bool
        Whether every loss is the logged one, and `parameters` are the run's final ones, bit for bit.
    largest_difference : float
        Between an element of `parameters` and of the final ones.
    differences : list of str
        The first loss that is another, and what of this machine is not what the run was made with.
    n_kept : int
        Contributions that were held at once at most: bounded by the staleness, whatever the run's length.
    """

    n_gradients: int
    parameters: np.ndarray
    agrees: bool
    largest_difference: float
    differences: list[str] = field(default_factory=list)
    n_kept: int = 0


def replay(run: Run, *, objective=None, data: Dataset | str | Path | None = None) -> Replayed:
    """Recompute the whole run and compare it with its files.

    Parameters
    ----------
    run : Run
    objective : optional
        What the run was made with, where it was passed to `train`; see `objectives.Objective`.
    data : Dataset or path, optional
        In place of the data set that the settings name.

    Raises
    ------
    ConfigError
        If the run cannot be replayed; the message says why.
    """
    if run.final is None:
        raise ConfigError(f"{run.directory} cannot be replayed to its end: it is not complete and has none")
    recomputation = _Recomputation(run, objective, data)
    for _ in recomputation:
        pass
    parameters = recomputation.replica(0, run.counts)
    same = parameters.tobytes() == run.final.tobytes()
    differences = [*recomputation.differences]
    if not same:
        differences.append("the final parameters differ")
    if differences:
        differences += _other_machine(run)
    return Replayed(
        int(run.counts.sum()),
        parameters,
        not differences,
        float(np.abs(parameters - run.final).max()),
        differences,
        recomputation.n_kept,
    )


def until(run: Run, n_gradients: int, *, objective=None, data=None) -> Moment:
    """Recompute the first `n_gradients` gradients of the global order, and sum their updates.

    No rank ever held these parameters, the ``x_t`` of ``theory.md``. Parameters and errors as of `replay`.
    """
    n_all = int(run.counts.sum())
    if not 0 <= n_gradients <= n_all:
        raise ConfigError(f"`--until` must be between 0 and the run's {n_all} gradients, got {n_gradients}")
    recomputation = _Recomputation(run, objective, data, stop=n_gradients)
    versions = np.zeros(run.n_ranks, np.int64)
    for rank in recomputation:
        versions[rank] += 1
    return Moment(recomputation.replica(0, versions), versions, differences=recomputation.differences)


def inspect(run: Run, rank: int, version: int, *, objective=None, data=None) -> Moment:
    """Recompute gradient `version` of `rank`, and the replica it was taken at.

    Other parameters and errors as of `replay`.
    """
    if not 0 <= rank < run.n_ranks:
        raise ConfigError(f"`--inspect` must name a rank below {run.n_ranks}, got {rank}")
    count = run.counts[rank]
    if not 0 <= version < count:
        raise ConfigError(f"`--inspect` must name one of the {count} gradients of rank {rank}, got {version}")
    order = run.order
    stop = int(np.flatnonzero((order.rank == rank) & (order.index == version))[0]) + 1
    recomputation = _Recomputation(run, objective, data, stop=stop)
    for _ in recomputation:
        pass
    return Moment(
        recomputation.parameters,
        recomputation.held,
        recomputation.gradient,
        recomputation.loss,
        recomputation.differences,
    )


def text(replayed: Replayed) -> str:
    """What a replay came to, for the terminal."""
    verdict = "agrees" if replayed.agrees else "DIFFERS"
    lines = [f"{verdict}: {replayed.n_gradients} gradients recomputed"]
    if replayed.agrees:
        lines[0] += ", every loss and the final parameters the same bit for bit"
    else:
        lines += [f"final parameters: largest difference {replayed.largest_difference:.3g}", *replayed.differences]
    return "\n".join([*lines, f"contributions held at once: {replayed.n_kept} at most"])


def moment_text(moment: Moment) -> str:
    """A moment in a few numbers, for the terminal."""
    versions = " ".join(map(str, moment.versions[:_SHOWN_RANKS]))
    more = f" ... ({moment.versions.size} ranks)" if moment.versions.size > _SHOWN_RANKS else ""
    lines = [
        f"parameters: norm {np.linalg.norm(moment.parameters):.6g}",
        f"holds {moment.versions.sum()} updates, by rank: {versions}{more}",
    ]
    if moment.gradient is not None:
        lines.append(f"gradient: norm {np.linalg.norm(moment.gradient):.6g}, loss {moment.loss:.6g}")
    return "\n".join([*lines, *(f"warning: {difference}" for difference in moment.differences)])


def write_moment(moment: Moment, path: str | Path) -> None:
    """Write ``parameters``, ``versions`` and, if there is one, ``gradient`` to exactly `path`, as ``.npz``.

    Raises
    ------
    ConfigError
        If the file cannot be written.
    """
    arrays = {"parameters": moment.parameters, "versions": moment.versions}
    if moment.gradient is not None:
        arrays["gradient"] = moment.gradient
    try:
        with open(path, "wb") as file:
            np.savez(file, **arrays)
    except OSError as error:
        raise ConfigError(f"cannot write to {path}: {error.strerror or error}") from None


def visit(run: Run, n_visits: int, *, objective=None, data=None) -> Iterator[np.ndarray]:
    """Recompute the run and yield the replica of every so many'th gradient, `n_visits` in all or less.

    The arrays are overwritten when the next one is asked for. Other parameters and errors as of `replay`.
    """
    every = max(1, -(-int(run.counts.sum()) // n_visits))
    recomputation = _Recomputation(run, objective, data)
    for number, _ in enumerate(recomputation):
        if number % every == every // 2:
            yield recomputation.parameters


class _Recomputation:
    """Gradient after gradient in the global order: yields the rank of each.

    Attributes
    ----------
    parameters, gradient, loss, held
        Of the last gradient, and the replica it was taken at.
    differences : list of str
        The first loss that is not the logged one.
    n_kept : int
    """

    def __init__(self, run: Run, objective, data, stop: int | None = None):
        _check(run, objective)
        config, n_ranks = run.config, run.n_ranks
        self._run, self._stop = run, stop
        self._objective, data = run.objective(objective, data)
        split = None if data is None else data.train
        self._samplers = [Sampler(config.seed, rank, split, config.data.batch_size) for rank in range(n_ranks)]
        self._optimizers = [
            optimizers.from_settings(config.optimizer, run.x0.size, run.x0.dtype, np) for _ in range(n_ranks)
        ]
        self._sum = _overlay_sum(run)
        self._order = run.order
        self._first = np.cumsum(run.counts) - run.counts
        # contributions[j][v]: the sum of rank j's first v updates, as long as a replica still to come holds it.
        self._contributions = [{0: np.zeros_like(run.x0)} for _ in range(n_ranks)]
        self._contributions[0][0] = run.x0
        self._last_use = self._find_last_uses()
        self.parameters, self.gradient = np.empty_like(run.x0), np.empty_like(run.x0)
        self.loss, self.held = math.nan, np.zeros(n_ranks, np.int64)
        self.differences: list[str] = []
        self.n_kept = n_ranks

    def __iter__(self):
        logged_loss, stepsize = self._run.gradients["loss"], self._run.gradients["stepsize"]
        scaled = np.empty_like(self.gradient)
        for at, held in self._gradients():
            rank, index = int(self._order.rank[at]), int(self._order.index[at])
            row = self._first[rank] + index
            self.parameters[...] = self.replica(rank, held)
            self.loss = self._objective.loss_and_gradient(
                self.parameters, self._samplers[rank].batch(index), self.gradient
            )
            if self.loss != logged_loss[row] and not self.differences:
                where = f"gradient {index} of rank {rank}, number {at} of all"
                self.differences.append(f"{where}: loss {self.loss!r}, in the log {float(logged_loss[row])!r}")
            self._optimizers[rank].update(self.gradient, float(stepsize[row]))(0, scaled.size, scaled)
            before = self._contributions[rank][index]
            self._contributions[rank][index + 1] = before + scaled
            self._forget(rank, index, at)
            for other, version in enumerate(held.tolist()):
                self._forget(other, version, at)
            self.n_kept = max(self.n_kept, sum(map(len, self._contributions)))
            self.held = held
            yield rank

    def replica(self, rank: int, versions: Sequence[int]) -> np.ndarray:
        """The replica of `rank` at a version vector."""
        terms = [kept[int(version)] for kept, version in zip(self._contributions, versions, strict=True)]
        return self._sum(rank, terms)

    def _gradients(self):
        """Yield the place in the global order and the version vector, up to where to stop."""
        for places, held, _ in walk(self._order, self._run.version_rows()):
            for at, vector in zip(places.tolist(), held.astype(np.int64), strict=True):
                if self._stop is not None and at >= self._stop:
                    return
                yield at, vector

    def _find_last_uses(self) -> list[np.ndarray]:
        """By rank and version, the place in the global order of the last gradient that needs the contribution."""
        never, end = -1, self._order.rank.size
        last_use = [np.full(count + 1, never, np.int64) for count in self._run.counts]
        for places, held, _ in walk(self._order, self._run.version_rows()):
            for versions, uses in zip(held.T, last_use, strict=True):
                uses[versions] = places  # ascending: of equal versions the last one stays
        stop = end if self._stop is None else self._stop
        reached = np.bincount(self._order.rank[:stop], minlength=self._run.n_ranks)
        for uses, version in zip(last_use, reached, strict=True):
            uses[version] = end  # the sum at the end
        return last_use

    def _forget(self, rank: int, version: int, at: int) -> None:
        kept = self._contributions[rank]
        if version in kept and version != max(kept) and self._last_use[rank][version] <= at:
            del kept[version]


def _overlay_sum(run: Run):
    """Return ``(rank, contributions) -> replica``, added up in the order in which the run did."""
    exchange, n_ranks = run.config.exchange, run.n_ranks
    if exchange.topology == "complete":
        neighbours = [topology.complete(rank, n_ranks) for rank in range(n_ranks)]

        def seen(rank, other, terms):
            return terms[other]
    else:
        neighbours = topology.all_tree_neighbours(exchange.topology, run.attributes["nodes"], fan_out=exchange.fan_out)

        def seen(rank, other, terms):
            return _edge_sum(neighbours, other, rank, terms)

    def replica(rank, terms):
        out = np.empty_like(terms[rank])
        sum_replica(terms[rank], [seen(rank, other, terms) for other in neighbours[rank]], out)
        return out

    return replica


def _edge_sum(neighbours: list[tuple[int, ...]], rank: int, reader: int, terms: list[np.ndarray]) -> np.ndarray:
    """What `rank` shows `reader`: the sum of its own side of the edge, each rank's part summed as that rank did."""
    others = neighbours[rank]
    if len(others) == 1:
        return terms[rank]
    # The reader's own side has no part in this edge's sum.
    seen = [terms[rank] if other == reader else _edge_sum(neighbours, other, rank, terms) for other in others]
    edges = [np.empty_like(terms[rank]) if other == reader else None for other in others]
    sum_edges(terms[rank], seen, edges, np.empty_like(terms[rank]))
    return edges[others.index(reader)]


def _check(run: Run, objective) -> None:
    """Raise `ConfigError` with everything that stands against a replay."""
    exchange, reasons = run.config.exchange, []
    if exchange.kind != "read":
        reasons.append(f"`exchange.kind` is {exchange.kind}, and only a replica of read is a function of its versions")
    elif exchange.consistency != "snapshot":
        reasons.append("`exchange.consistency` is elementwise: a read may have mixed versions")
    if run.versions_every != 1:
        reasons.append(f'`log.versions` is "{run.config.log.versions}", so that version vectors are missing')
    if not run.counts.any():
        reasons.append("it holds no gradients")
    if np.isnan(run.gradients["stepsize"]).any():
        reasons.append("stepsizes are not in its log, which is of an earlier version")
    if exchange.topology != "complete" and "nodes" not in run.attributes:
        reasons.append("the nodes of its ranks are not in its log, which is of an earlier version")
    if objective is None and run.attributes.get("objective_given"):
        reasons.append("its objective was passed in Python: pass it to `hpc_dasgd.replay.replay` too")
    if reasons:
        raise ConfigError(f"{run.directory} cannot be replayed: {'; '.join(reasons)}")


def _other_machine(run: Run) -> list[str]:
    """What may change the last bits of a result and is another here than it was in the run."""
    here = machine.describe() | {"numpy_version": np.__version__}
    then = {name: run.attributes[name] for name in _CHANGES_BITS if name in run.attributes}
    return [f"{name} is {here[name]}, in the run {value}" for name, value in then.items() if value != here[name]]
