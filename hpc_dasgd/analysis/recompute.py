"""The arithmetic of a run of exchange `read`, gradient after gradient: what `replay` is made of."""

import copy
import math
from collections.abc import Iterator, Sequence

import numpy as np

from hpc_dasgd.analysis.run import Run
from hpc_dasgd.arrays import devices
from hpc_dasgd.config.exchange_traits import kinds_with, traits_of
from hpc_dasgd.data.batches import Sampler
from hpc_dasgd.errors import ConfigError
from hpc_dasgd.optim import optimizers
from hpc_dasgd.overlay import topology
from hpc_dasgd.overlay.partial_sums import sum_edges, sum_replica
from hpc_dasgd.storage import layout
from hpc_dasgd.storage.generations import Generation
from hpc_dasgd.storage.log_reader import open_file
from hpc_dasgd.theory.version_vectors import walk


def device_of(run: Run):
    """What gradients of `run` are taken with again: a GPU if it had one and there is one here, else the processor."""
    on_gpus = any(name != devices.Host.name for name in run.attributes.get("devices", ()))
    return devices.choose("auto" if on_gpus else "cpu", tf32=run.config.device.tf32)


class Recomputation:
    """Gradient after gradient in the global order: yields the rank of each.

    Raises `ConfigError` if the run cannot be replayed.

    Parameters
    ----------
    run : Run
    objective, data
        As of `replay.replay`.
    stop : int, optional
        How many gradients; by default all.

    Attributes
    ----------
    parameters, gradient, loss, held
        Of the last gradient, and the replica it was taken at.
    differences : list of str
        The first loss that is not the logged one, and generations that began with other parameters.
    n_kept : int
        Contributions that were held at once at most.
    """

    def __init__(self, run: Run, objective, data, stop: int | None = None):
        _check(run, objective)
        self._run, self._stop = run, stop
        self._objective, data = run.objective(objective, data)
        self._device = device_of(run)
        self._split = None if data is None else data.on(self._device).train
        self._order = run.order
        self._first = np.cumsum(run.counts) - run.counts
        self._last_use = self._find_last_uses()
        self.parameters, self.gradient = np.empty_like(run.x0), np.empty_like(run.x0)
        # What the objective is given, the same arrays every time.
        self._placed = self.parameters, self.gradient
        if not self._device.on_host:
            self._placed = tuple(map(self._device.to_device, self._placed))
        self.loss, self.held = math.nan, np.zeros(run.n_ranks, np.int64)
        self.differences: list[str] = []
        self._place, self._optimizers = 0, []
        self._begin(run.generations[0], run.x0)
        self.n_kept = len(self._contributions)

    def __iter__(self) -> Iterator[int]:
        logged_loss, stepsize = self._run.gradients["loss"], self._run.gradients["stepsize"]
        scaled = np.empty_like(self.gradient)
        for at, held in self._gradients():
            rank, index = int(self._order.rank[at]), int(self._order.index[at])
            while self._child is not None and index >= self._child.versions_before[rank]:
                self._go_on()
            row = self._first[rank] + index
            self.parameters[...] = self.replica(rank, held)
            self._differentiate(self._samplers[rank].batch(index))
            if self.loss != logged_loss[row] and not self.differences:
                where = f"gradient {index} of rank {rank}, number {at} of all"
                self.differences.append(f"{where}: loss {self.loss!r}, in the log {float(logged_loss[row])!r}")
            self._optimizers[rank].update(self.gradient, float(stepsize[row]))(0, scaled.size, scaled)
            before = self._contributions[rank][index]
            self._contributions[rank][index + 1] = before + scaled
            self._forget(rank, index, at)
            for other, version in enumerate(held[: len(self._contributions)].tolist()):
                self._forget(other, version, at)
            self.n_kept = max(self.n_kept, sum(map(len, self._contributions)))
            self.held = held
            yield rank
        while self._stop is None and self._child is not None:
            self._go_on()

    def _differentiate(self, batch) -> None:
        """Take loss and gradient on the device; all else is done here, where it has the same bits."""
        parameters, gradient = self._placed
        if not self._device.on_host:
            parameters[...] = self._device.to_device(self.parameters)
        self.loss = float(self._objective.loss_and_gradient(parameters, batch, gradient))
        if not self._device.on_host:
            self.gradient[...] = self._device.to_host(gradient)

    def replica(self, rank: int, versions: Sequence[int]) -> np.ndarray:
        """The replica of `rank` at a version vector, in the generation that was come to."""
        terms = [kept[int(version)] for kept, version in zip(self._contributions, versions, strict=False)]
        return self._sum(rank, terms)

    def final(self) -> np.ndarray:
        """What all replicas end as: rank 0's, or where deaths are survived, what each rank sums by itself."""
        terms = [kept[int(version)] for kept, version in zip(self._contributions, self._run.counts, strict=False)]
        survives = self._run.generations[self._place].config.exchange.survive
        return _sum_in_order(terms) if survives else self._sum(0, terms)

    @property
    def _child(self) -> Generation | None:
        """The generation that follows the one that was come to."""
        return self._run.generations[self._place + 1] if self._place + 1 < len(self._run.generations) else None

    def _begin(self, generation: Generation, x0: np.ndarray) -> None:
        """Start as the ranks of a generation did, from parameters and the optimizers of the generation before."""
        config = generation.config
        ranks = range(generation.n_ranks)
        self._samplers = [Sampler(config.seed, rank, self._split, config.data.batch_size) for rank in ranks]
        states = [optimizer.state for optimizer in self._optimizers]
        self._optimizers = [optimizers.from_settings(config.optimizer, x0.size, x0.dtype, np) for _ in ranks]
        goes_on = states and config.optimizer.kind == self._run.generations[self._place - 1].config.optimizer.kind
        for rank, optimizer in enumerate(self._optimizers if goes_on else ()):
            optimizer.load_state(copy.deepcopy(states[rank % len(states)]))
        self._sum = _overlay_sum(generation)
        # contributions[j][v]: the sum of rank j's updates of this generation, up to its v-th of all, as long as a
        # replica still to come holds it.
        before = generation.versions_before
        self._contributions = [{int(before[rank]): np.zeros_like(x0)} for rank in ranks]
        self._contributions[0][int(before[0])] = x0

    def _go_on(self) -> None:
        """Come to the next generation, which began with the sum of all contributions, in the order of ranks."""
        child = self._child
        terms = [kept[int(version)] for kept, version in zip(self._contributions, child.versions_before, strict=False)]
        x0 = _sum_in_order(terms)
        with open_file(child.directory / layout.RUN_FILE) as file:
            then = file["x0"][:]
        if x0.tobytes() != then.tobytes():
            largest = float(np.abs(x0 - then).max())
            self.differences.append(f"generation {child.number} began with other parameters: by {largest:.3g} at most")
        self._place += 1
        self._begin(child, x0)

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


def _sum_in_order(terms: Sequence[np.ndarray]) -> np.ndarray:
    total = terms[0].copy()
    for term in terms[1:]:
        total += term
    return total


def _overlay_sum(generation: Generation):
    """Return ``(rank, contributions) -> replica``, added up in the order in which the generation did."""
    exchange, n_ranks = generation.config.exchange, generation.n_ranks
    if exchange.topology == "complete":
        neighbours = [topology.complete(rank, n_ranks) for rank in range(n_ranks)]

        def seen(rank, other, terms):
            return terms[other]
    else:
        nodes = generation.attributes["nodes"]
        neighbours = topology.all_tree_neighbours(exchange.topology, nodes, fan_out=exchange.fan_out)

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
    reasons = [reason for generation in run.generations for reason in _exchange_reasons(generation)]
    if run.versions_every != 1:
        reasons.append(f'`log.versions` is "{run.config.log.versions}", so that version vectors are missing')
    if not run.counts.any():
        reasons.append("it holds no gradients")
    if run.lost.any():
        reasons.append(f"{run.lost.sum()} gradients are missing from its log")
    elif run.has_versions and (n_held := run.n_holding_lost_work()):
        reasons.append(f"{n_held} replicas held updates that were lost when the run was resumed")
    if np.isnan(run.gradients["stepsize"]).any() and not run.lost.any():
        reasons.append("stepsizes are not in its log, which is of an earlier version")
    if objective is None and run.attributes.get("objective_given"):
        reasons.append("its objective was passed in Python: pass it to `hpc_dasgd.analysis.replay.replay` too")
    if reasons:
        raise ConfigError(f"{run.directory} cannot be replayed: {'; '.join(dict.fromkeys(reasons))}")


def _exchange_reasons(generation: Generation) -> Iterator[str]:
    exchange = generation.config.exchange
    traits = traits_of(exchange.kind)
    if not traits.replayable:
        able = ", ".join(kinds_with("replayable"))
        yield f"`exchange.kind` is {exchange.kind}, and only a replica of {able} is a function of its version vector"
    for name, value in traits.replay_requires:
        if getattr(exchange, name) != value:
            yield f"`exchange.{name}` is {getattr(exchange, name)}, and a replay needs {value}"
    if died := generation.attributes.get("died"):
        yield f"ranks {died} died, and what others read of them may not be in their logs"
    if exchange.topology != "complete" and "nodes" not in generation.attributes:
        yield "the nodes of its ranks are not in its log, which is of an earlier version"
