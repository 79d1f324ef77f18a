"""Sequential recomputation of a run of exchange `read`: the arithmetic of `hpc_dasgd.analysis.replay`."""

import copy
import math
from collections.abc import Iterator, Sequence

import numpy as np

from hpc_dasgd.analysis.overlay_sums import replica_sum, sum_in_rank_order
from hpc_dasgd.analysis.run import DatasetSource, Run
from hpc_dasgd.arrays import devices
from hpc_dasgd.arrays.devices import Device
from hpc_dasgd.arrays.types import Floats, Int64s
from hpc_dasgd.config.exchange_traits import kinds_with, traits_of
from hpc_dasgd.data.batches import Batch, Sampler
from hpc_dasgd.errors import ConfigError
from hpc_dasgd.objectives.interface import Objective
from hpc_dasgd.optim import optimizers
from hpc_dasgd.optim.interface import Optimizer
from hpc_dasgd.storage import layout
from hpc_dasgd.storage.generations import Generation
from hpc_dasgd.storage.hdf5_io import open_readable
from hpc_dasgd.theory.version_vectors import logged_blocks


def replay_device(run: Run) -> Device:
    """Return the device that recomputes gradients: a GPU if the run used GPUs and one is visible, else the host."""
    on_gpus = any(name != devices.Host.name for name in run.attributes.get("devices", ()))
    return devices.choose("auto" if on_gpus else "cpu", tf32=run.config.device.tf32)


class Recomputation:
    """Iterator over the gradients of a run in the global order, which recomputes each gradient and yields its rank.

    Contributions are kept only as long as a later gradient needs them, so that memory is bounded by the staleness.

    Parameters
    ----------
    run : Run
    objective, data
        As for `hpc_dasgd.analysis.replay.replay`.
    stop : int, optional
        Number of gradients after which to stop; by default all are recomputed.

    Attributes
    ----------
    parameters : ndarray, shape (n_params,), dtype of ``run.x0``, host memory
        Replica at which the last gradient was computed. Overwritten by the next step, like `gradient`.
    gradient : ndarray, shape (n_params,), dtype of ``run.x0``, host memory
        Last gradient.
    loss : float
        Loss of the batch of the last gradient.
    versions : ndarray, shape (n_ranks,), int64
        Version vector of `parameters`.
    differences : list of str
        The first loss that differs from the logged one, and the generations whose initial parameters differ.
    max_contributions : int
        Largest number of contributions that were kept at the same time.

    Raises
    ------
    ConfigError
        If the run cannot be recomputed; the message gives all reasons.
    """

    def __init__(
        self,
        run: Run,
        objective: Objective | None,
        data: DatasetSource | None,
        stop: int | None = None,
    ) -> None:
        _check(run, objective)
        self._run, self._stop = run, stop
        self._objective, dataset = run.objective(objective, data)
        self._device = replay_device(run)
        self._split = None if dataset is None else dataset.to_device(self._device).train
        self._order = run.order
        self._first_rows = np.cumsum(run.counts) - run.counts
        self._last_uses = self._find_last_uses()
        self.parameters, self.gradient = np.empty_like(run.x0), np.empty_like(run.x0)
        # The objective may keep references to its arrays: it gets the same ones at every step.
        self._device_parameters, self._device_gradient = self.parameters, self.gradient
        if not self._device.on_host:
            self._device_parameters = self._device.to_device(self.parameters)
            self._device_gradient = self._device.to_device(self.gradient)
        self.loss, self.versions = math.nan, np.zeros(run.n_ranks, np.int64)
        self.differences: list[str] = []
        self._generation_index = 0
        self._optimizers: list[Optimizer] = []
        self._start_generation(run.generations[0], run.x0)
        self.max_contributions = len(self._contributions)

    def __iter__(self) -> Iterator[int]:
        logged_loss, stepsize = self._run.gradients["loss"], self._run.gradients["stepsize"]
        update = np.empty_like(self.gradient)
        for position, versions in self._walk():
            rank, index = int(self._order.rank[position]), int(self._order.index[position])
            while (child := self._next_generation) is not None and index >= child.versions_before[rank]:
                self._start_next_generation(child)
            row = self._first_rows[rank] + index
            self.parameters[...] = self.replica(rank, versions)
            self._compute_gradient(self._samplers[rank].batch(index))
            if self.loss != logged_loss[row] and not self.differences:
                name = f"gradient {index} of rank {rank} (number {position} in the global order)"
                self.differences.append(f"{name}: loss {self.loss!r}, logged {float(logged_loss[row])!r}")
            self._optimizers[rank].update(self.gradient, float(stepsize[row]))(0, update.size, update)
            self._contributions[rank][index + 1] = self._contributions[rank][index] + update
            self._discard_unused(rank, index, position)
            for other, version in enumerate(versions[: len(self._contributions)].tolist()):
                self._discard_unused(other, version, position)
            self.max_contributions = max(self.max_contributions, sum(map(len, self._contributions)))
            self.versions = versions
            yield rank
        while self._stop is None and (child := self._next_generation) is not None:
            self._start_next_generation(child)

    def replica(self, rank: int, versions: Sequence[int] | Int64s) -> Floats:
        """Return the replica of `rank` at a version vector, shape (n_params,), in the current generation."""
        return self._replica_sum(rank, self._contributions_at(versions))

    def final_parameters(self) -> Floats:
        """Return the final parameters, shape (n_params,), as the ranks of the last generation computed them.

        They are rank 0's replica, or with ``exchange.survive`` the sum of all contributions in the order of ranks.
        """
        survives = self._run.generations[self._generation_index].config.exchange.survive
        if survives:
            return sum_in_rank_order(self._contributions_at(self._run.counts))
        return self.replica(0, self._run.counts)

    def _compute_gradient(self, batch: Batch) -> None:
        """Compute loss and gradient on the device; everything else is computed on the host, as in the run."""
        if not self._device.on_host:
            self._device_parameters[...] = self._device.to_device(self.parameters)
        self.loss = float(self._objective.loss_and_gradient(self._device_parameters, batch, self._device_gradient))
        if not self._device.on_host:
            self.gradient[...] = self._device.to_host(self._device_gradient)

    def _contributions_at(self, versions: Sequence[int] | Int64s) -> list[Floats]:
        return [kept[int(version)] for kept, version in zip(self._contributions, versions, strict=False)]

    @property
    def _next_generation(self) -> Generation | None:
        """Generation that followed the current one."""
        following = self._run.generations[self._generation_index + 1 :]
        return following[0] if following else None

    def _start_generation(self, generation: Generation, x0: Floats) -> None:
        """Start a generation as its ranks did: from `x0`, and from the optimizer states of the previous generation."""
        config = generation.config
        ranks = range(generation.n_ranks)
        self._samplers = [Sampler(config.seed, rank, self._split, config.data.batch_size) for rank in ranks]
        states = [optimizer.state for optimizer in self._optimizers]
        self._optimizers = [optimizers.from_settings(config.optimizer, x0.size, x0.dtype, np) for _ in ranks]
        if states and config.optimizer.kind == self._run.generations[self._generation_index - 1].config.optimizer.kind:
            for rank, optimizer in enumerate(self._optimizers):
                optimizer.load_state(copy.deepcopy(states[rank % len(states)]))
        self._replica_sum = replica_sum(generation)
        # contributions[j][v]: the sum of rank j's updates of this generation up to its v-th update of the run.
        before = generation.versions_before
        self._contributions = [{int(before[rank]): np.zeros_like(x0)} for rank in ranks]
        self._contributions[0][int(before[0])] = x0

    def _start_next_generation(self, child: Generation) -> None:
        """Start the next generation, which began with the sum of all contributions in the order of ranks."""
        x0 = sum_in_rank_order(self._contributions_at(child.versions_before))
        with open_readable(child.directory / layout.RUN_FILE) as file:
            logged = file["x0"][:]
        if x0.tobytes() != logged.tobytes():
            largest = float(np.abs(x0 - logged).max())
            self.differences.append(
                f"generation {child.number} began with other parameters: largest difference {largest:.3g}"
            )
        self._generation_index += 1
        self._start_generation(child, x0)

    def _walk(self) -> Iterator[tuple[int, Int64s]]:
        """Yield each gradient's position in the global order and its version vector, up to `stop` gradients."""
        for positions, vectors, _ in logged_blocks(self._order, self._run.version_rows()):
            for position, versions in zip(positions.tolist(), vectors.astype(np.int64), strict=True):
                if self._stop is not None and position >= self._stop:
                    return
                yield position, versions

    def _find_last_uses(self) -> list[Int64s]:
        """Return, by rank and version, the position of the last gradient that needs the contribution; -1 if none."""
        never, end = -1, self._order.rank.size
        last_uses = [np.full(count + 1, never, np.int64) for count in self._run.counts]
        for positions, vectors, _ in logged_blocks(self._order, self._run.version_rows()):
            for versions, uses in zip(vectors.T, last_uses, strict=True):
                uses[versions] = positions  # ascending: for equal versions the last one remains
        stop = end if self._stop is None else self._stop
        last_versions = np.bincount(self._order.rank[:stop], minlength=self._run.n_ranks)
        for uses, version in zip(last_uses, last_versions, strict=True):
            uses[version] = end  # needed for the final parameters
        return last_uses

    def _discard_unused(self, rank: int, version: int, position: int) -> None:
        """Discard a contribution that no gradient after `position` needs."""
        kept = self._contributions[rank]
        if version in kept and version != max(kept) and self._last_uses[rank][version] <= position:
            del kept[version]


def _check(run: Run, objective: Objective | None) -> None:
    """Raise `ConfigError` with all reasons why a run cannot be recomputed."""
    reasons = [reason for generation in run.generations for reason in _exchange_reasons(generation)]
    if run.versions_every != 1:
        reasons.append(f'`log.versions` is "{run.config.log.versions}", so that version vectors are missing')
    if not run.counts.any():
        reasons.append("it holds no gradients")
    if run.missing_counts.any():
        reasons.append(f"{run.missing_counts.sum()} gradients are missing from its log")
    elif run.has_versions and (n_holding := run.n_holding_lost_work()):
        reasons.append(f"{n_holding} replicas contained updates that were lost when the run was resumed")
    if np.isnan(run.gradients["stepsize"]).any() and not run.missing_counts.any():
        reasons.append("its log was written by an earlier version and has no stepsizes")
    if objective is None and run.attributes.get("objective_given"):
        reasons.append("its objective was passed in Python: pass it to `hpc_dasgd.analysis.replay.replay` too")
    if reasons:
        raise ConfigError(f"{run.directory} cannot be replayed: {'; '.join(dict.fromkeys(reasons))}")


def _exchange_reasons(generation: Generation) -> Iterator[str]:
    """Yield the reasons why the replicas of a generation are not functions of the log."""
    exchange = generation.config.exchange
    traits = traits_of(exchange.kind)
    if not traits.replayable:
        able = ", ".join(kinds_with("replayable"))
        yield f"`exchange.kind` is {exchange.kind}, and only a replica of {able} is a function of its version vector"
    for name, value in traits.replay_requires:
        if getattr(exchange, name) != value:
            yield f"`exchange.{name}` is {getattr(exchange, name)}, and a replay needs {value}"
    if died := generation.attributes.get("died"):
        yield f"ranks {died} died, and updates that other ranks read from them may be missing from their logs"
    if exchange.topology != "complete" and "nodes" not in generation.attributes:
        yield "its log was written by an earlier version and does not name the nodes of the ranks"
