"""Times of the parts of a step, for the simulation: from the log of an earlier run, or measured here.

All times are those of a rank that has a core of its own; the simulation lets ranks share cores if there are fewer. In
a run with fewer cores than ranks, ranks waited for a core. The longest times contain this waiting. They are therefore
limited to a value at which the mean is divided by the number of active ranks per core of the node.

The times of a run contain the time of the Python code in each step; times measured here do not. If a gradient takes
less than a millisecond, plan from a run. The time of the exchanges of a run that exceeds polling and passes over memory
(at the speed of this machine) is assumed not to depend on the number of neighbours. If ranks compete for memory
bandwidth, a plan for many more neighbours is therefore too optimistic.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from hpc_dasgd import objectives
from hpc_dasgd.analysis.run import Run
from hpc_dasgd.arrays import devices
from hpc_dasgd.arrays.types import DType, Float64s
from hpc_dasgd.config.exchange_traits import kinds_with, traits_of
from hpc_dasgd.config.settings import Config
from hpc_dasgd.data.batches import Sampler
from hpc_dasgd.errors import ConfigError
from hpc_dasgd.overlay.topology import all_tree_neighbours
from hpc_dasgd.plan.simulate import READ_PASSES, store_passes, sum_passes
from hpc_dasgd.training import stragglers

POLL_S = 5e-6  # two MPI calls from Python, and a comparison; measured with MPICH in shared memory
_QUANTILES = 256
_MEASURE_S = 1.0

Neighbours: TypeAlias = list[tuple[int, ...]] | None
"""Neighbours of each rank on a tree; None for the complete overlay."""


@dataclass(frozen=True)
class Times:
    """Times of the parts of a step, for ranks with cores of their own.

    Attributes
    ----------
    compute_s, overhead_s : sequence of lists of float, s
        Times of a gradient, and of the remaining work of a step, to draw from with equal probability: one list for
        each rank, or one for all.
    pass_s : float, s
        Time of one pass over an array of the size of the model.
    n_params : int
        Number of parameters of the model.
    origin : str
        Description of the origin of the times.
    """

    compute_s: Sequence[list[float]]
    overhead_s: Sequence[list[float]]
    pass_s: float
    n_params: int
    origin: str


def times_from_run(run: Run, n_ranks: int, cores: int, n_params: int | None = None) -> Times:
    """Return the times of the steps of a run, without the delays of its stragglers.

    If the run had `n_ranks` ranks, each rank has its own times; otherwise all ranks draw from the times of all ranks of
    the run. Between two gradients, a rank polls its neighbours twice, makes the passes over memory counted in
    ``exchange/read/exchange.py``, writes its log and executes Python code. The overhead is the time between two
    gradients minus the time of polling and passes.

    Parameters
    ----------
    run : Run
        A run with exchange `read` or `none`.
    n_ranks : int
        Number of ranks of the planned run.
    cores : int
        Number of cores of a node of `run`; used only if the files of the run do not contain it.
    n_params : int, optional
        Number of parameters of the planned run; by default that of `run`.

    Returns
    -------
    times : Times

    Raises
    ------
    ConfigError
        If the run had another exchange, or a rank has fewer than 2 gradients.
    """
    check_exchange(run.config, f"{run.directory}: ")
    if run.counts.min() < 2:
        raise ConfigError(f"{run.directory} must hold at least 2 gradients of each rank to plan from")
    run_pass_s = _pass_s(run.x0.size, run.x0.dtype)
    compute_s, overhead_s = _times_by_rank(run, cores, run_pass_s)
    if n_ranks != run.n_ranks:
        compute_s, overhead_s = ([np.concatenate(values)] for values in (compute_s, overhead_s))
    return Times(
        [_quantiles(values) for values in compute_s],
        [_quantiles(values) for values in overhead_s],
        run_pass_s if n_params is None else _pass_s(n_params, run.x0.dtype),
        n_params or run.x0.size,
        f"run {run.directory}",
    )


def _times_by_rank(run: Run, cores: int, pass_s: float) -> tuple[list[Float64s], list[Float64s]]:
    """Return for each rank the times, in s, of its gradients and of its overhead; see `times_from_run`."""
    config = run.config
    hosts = run.attributes.get("hosts", ["node"] * run.n_ranks)
    n_cores = run.attributes.get("cores", [cores] * run.n_ranks)
    limits = np.cumsum(run.counts)[:-1]
    starts_s, ends_s = (np.split(run.gradients[name], limits) for name in ("t_start_s", "t_end_s"))
    delays_s = [_delays_s(config, rank, count) for rank, count in enumerate(run.counts.tolist())]
    n_active = dict.fromkeys(hosts, 0.0)  # mean number of ranks of each host that are not delayed
    for rank, host in enumerate(hosts):
        n_active[host] += 1 - delays_s[rank].sum() / (ends_s[rank][-1] - starts_s[rank][0])
    nodes = {host: number for number, host in enumerate(n_active)}
    neighbours = neighbours_of(config, [nodes[host] for host in hosts])
    compute_s, overhead_s = [], []
    for rank, host in enumerate(hosts):
        slowdown = max(1.0, n_active[host] / n_cores[rank])
        degree, n_passes = _mean_exchange(run, rank, neighbours)
        exchange_s = 2 * degree * POLL_S / int(config.exchange.every) + n_passes * pass_s
        between_s = starts_s[rank][1:] - ends_s[rank][:-1]
        compute_s.append(_without_core_waits(ends_s[rank] - starts_s[rank] - delays_s[rank], slowdown))
        overhead_s.append(np.maximum(_without_core_waits(between_s, slowdown) - exchange_s, 0))
    return compute_s, overhead_s


def times_from_config(config: Config, compute_ms: float | None = None, n_params: int | None = None) -> Times:
    """Measure gradients of the configured objective and copies of arrays of its size, for about a second.

    Parameters
    ----------
    config : Config
    compute_ms : float, ms, optional
        Time of a gradient. By default it is measured.
    n_params : int, optional
        Number of parameters; by default that of the objective.

    Returns
    -------
    times : Times
    """
    origin = ["passes over memory measured here"]
    compute_s = None if compute_ms is None else np.array([compute_ms / 1e3])
    if compute_s is None or n_params is None:
        objective, data = objectives.configured(config)
        x0 = np.ascontiguousarray(objective.initial(np.random.default_rng(config.seed)), config.device.dtype)
        n_params = n_params or x0.size
        if compute_s is None:
            computer = devices.choose(config.device.kind, tf32=config.device.tf32)
            data = data and data.to_device(computer)
            sampler = Sampler(config.seed, 0, None if data is None else data.train, config.data.batch_size)
            parameters, gradient = computer.to_device(x0), computer.zeros(x0.size, x0.dtype)
            versions = iter(range(1 << 62))
            compute_s = _measure(
                lambda: float(objective.loss_and_gradient(parameters, sampler.batch(next(versions)), gradient))
            )
            origin.insert(0, f"gradients measured here ({computer.name})")
    pass_s = _pass_s(n_params, config.device.dtype)
    return Times([_quantiles(compute_s)], [[0.0]], pass_s, n_params, ", ".join(origin))


def check_exchange(config: Config, prefix: str = "") -> None:
    """Raise `ConfigError` if times cannot be taken from a run with these settings; the message begins with `prefix`."""
    if not traits_of(config.exchange.kind).gives_times:
        able = " or ".join(kinds_with("gives_times"))
        raise ConfigError(f"{prefix}`exchange.kind` must be {able} to plan with, got {config.exchange.kind!r}")
    if config.exchange.every == "auto":
        raise ConfigError(f"{prefix}`exchange.every` must be a number to plan with, got 'auto'")


def neighbours_of(config: Config, nodes: Sequence[int]) -> Neighbours:
    """Return the neighbours of each rank; None on the complete overlay, empty tuples without exchange."""
    if not traits_of(config.exchange.kind).topologies:
        return [()] * len(nodes)
    if config.exchange.topology == "complete":
        return None
    return all_tree_neighbours(config.exchange.topology, nodes, fan_out=config.exchange.fan_out)


def _delays_s(config: Config, rank: int, n_gradients: int) -> Float64s:
    """Return the delays, in s, that the straggler settings of a run added to each step of a rank."""
    delays_s = stragglers.delays_s(config, rank)
    return np.zeros(n_gradients) if delays_s is None else np.fromiter(delays_s, float, n_gradients)


def _mean_exchange(run: Run, rank: int, neighbours: Neighbours) -> tuple[int, float]:
    """Return the number of neighbours of a rank, and the mean number of passes over memory per step."""
    every = int(run.config.exchange.every)
    others = np.delete(np.arange(run.n_ranks), rank) if neighbours is None else list(neighbours[rank])
    degree = len(others)
    n_store = store_passes(degree, inner=neighbours is not None and degree > 1)
    if "transferred_bytes" in run.attributes:
        n_vector_bytes = 0 if neighbours is None else 8 * run.n_ranks
        transferred = np.atleast_1d(run.attributes["transferred_bytes"])[rank]
        n_new = transferred / (run.x0.nbytes + n_vector_bytes) / run.counts[rank]
    else:  # at most one new publication of each neighbour per exchange, fewer of neighbours that make fewer steps
        n_new = np.minimum(1, run.counts[others] / (run.counts[rank] / every)).sum() / every
    # About half of the new publications are read in `pull`, if there are any.
    return degree, n_store + READ_PASSES * n_new + sum_passes(degree) * min(1 / every, n_new / 2)


def _pass_s(n_params: int, dtype: DType) -> float:
    """Measure the time, in s, of one pass over an array on this machine: half the time of a copy."""
    source, target = np.zeros((2, n_params), dtype)
    return float(np.median(_measure(lambda: np.copyto(target, source), _MEASURE_S / 4))) / 2


def _without_core_waits(times_s: Float64s, slowdown: float) -> Float64s:
    """Return sorted times, in s, limited to a value at which their mean is divided by `slowdown`."""
    ascending = np.sort(np.maximum(times_s, 0))
    if slowdown == 1:
        return ascending
    # Element k is the mean if all times are limited to the k-th.
    n_after = np.arange(ascending.size - 1, -1, -1)
    means = (np.cumsum(ascending) + n_after * ascending) / ascending.size
    return np.minimum(ascending, np.interp(means[-1] / slowdown, [0, *means], [0, *ascending]))


def _quantiles(values: Float64s) -> list[float]:
    """Return at most `_QUANTILES` values with the same mean: the means of equal parts of the sorted values."""
    parts = np.array_split(np.sort(values), min(_QUANTILES, values.size))
    return [float(part.mean()) for part in parts]


def _measure(call: Callable[[], object], seconds: float = _MEASURE_S) -> Float64s:
    """Return the times, in s, of single calls made for `seconds`, after one call that is not counted."""
    call()
    times_s: list[float] = []
    end_s = time.perf_counter() + seconds
    while not times_s or time.perf_counter() < end_s:
        begun_s = time.perf_counter()
        call()
        times_s.append(time.perf_counter() - begun_s)
    return np.array(times_s)
