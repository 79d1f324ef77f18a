"""Times to simulate with: from an earlier run, or measured here.

All times are meant for a rank with a core of its own; `simulate` lets ranks take turns where there are fewer cores. In
the times of an earlier run that had fewer, ranks waited for each other. It is the longest times that hold the waiting:
these are cut until the mean is as much smaller as there were more ranks at work on a node than cores. Python's own
time per step is in the times of a run, and missing where there is none to go by: on models so small that a gradient
takes less than a millisecond, plan from a run. What a run's exchanges took beyond asking and passes over memory (as
fast as this machine copies) counts as constant, whatever the number of neighbours; where ranks compete for the
bandwidth of memory, a plan for many more neighbours is therefore too fast.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hpc_dasgd import objectives
from hpc_dasgd.analysis.run import Run
from hpc_dasgd.arrays import devices
from hpc_dasgd.config.exchange_traits import kinds_with, traits_of
from hpc_dasgd.config.settings import Config
from hpc_dasgd.data.batches import Sampler
from hpc_dasgd.errors import ConfigError
from hpc_dasgd.overlay.topology import all_tree_neighbours
from hpc_dasgd.plan.simulate import READ_PASSES, store_passes, sum_passes
from hpc_dasgd.training import stragglers

_QUANTILES = 256
_MEASURE_S = 1.0
ASK_S = 5e-6  # two calls of MPI from Python and a look at the header, measured with MPICH in shared memory


@dataclass(frozen=True)
class Times:
    """Times on a core of one's own, to draw from: a list for each rank or one for all; see `simulate.Setup`."""

    compute_s: Sequence[list[float]]
    overhead_s: Sequence[list[float]]
    pass_s: float
    n_params: int
    origin: str


def times_from_run(run: Run, n_ranks: int, cores: int, n_params: int | None = None) -> Times:
    """Take a run's times of gradients and exchanges, its own stragglers' delays left out.

    Of each rank, where the run had as many as are planned; else of all together. From the end of a gradient to the
    start of the next, a rank asks its neighbours for news twice, makes the passes over memory that stand in
    `exchange.read.ReadExchange`, and has the log and Python's own work to do: whatever the former leave of that time.

    Parameters
    ----------
    run : Run
        With exchange `read` or `none`.
    n_ranks : int
        To be planned.
    cores : int
        Of a node of that run, where its files do not say.
    n_params : int, optional
        To be planned; by default as many as in the run.
    """
    config = run.config
    check_exchange(config, f"{run.directory}: ")
    if run.counts.min() < 2:
        raise ConfigError(f"{run.directory} must hold at least 2 gradients of each rank to plan from")
    hosts = run.attributes.get("hosts", ["node"] * run.n_ranks)
    n_cores = run.attributes.get("cores", [cores] * run.n_ranks)
    ends = np.cumsum(run.counts)[:-1]
    starts_s, ends_s = (np.split(run.gradients[name], ends) for name in ("t_start_s", "t_end_s"))
    delays_s = [_delays_s(config, rank, count) for rank, count in enumerate(run.counts.tolist())]
    at_work = dict.fromkeys(hosts, 0.0)
    for rank, host in enumerate(hosts):
        at_work[host] += 1 - delays_s[rank].sum() / (ends_s[rank][-1] - starts_s[rank][0])
    neighbours = neighbours_of(config, hosts)
    run_pass_s = _copying_s(run.x0.size, run.x0.dtype)
    compute_s, overhead_s = [], []
    for rank, host in enumerate(hosts):
        stretch = max(1.0, at_work[host] / n_cores[rank])
        computing_s = ends_s[rank] - starts_s[rank]
        exchanging_s = starts_s[rank][1:] - ends_s[rank][:-1]
        degree, n_passes = _mean_exchange(run, rank, neighbours)
        known_s = 2 * degree * ASK_S / config.exchange.every + n_passes * run_pass_s
        compute_s.append(_without_waiting(computing_s - delays_s[rank], stretch))
        overhead_s.append(np.maximum(_without_waiting(exchanging_s, stretch) - known_s, 0))
    if n_ranks != run.n_ranks:
        compute_s, overhead_s = ([np.concatenate(values)] for values in (compute_s, overhead_s))
    return Times(
        [_quantiles(values) for values in compute_s],
        [_quantiles(values) for values in overhead_s],
        run_pass_s if n_params is None else _copying_s(n_params, run.x0.dtype),
        n_params or run.x0.size,
        f"run {run.directory}",
    )


def times_from_config(config: Config, compute_ms: float | None = None, n_params: int | None = None) -> Times:
    """Take some gradients of the configured objective, and copy arrays of its size, for about a second.

    What `compute_ms` and `n_params` give is not measured.
    """
    origin = ["passes over memory measured here"]
    if compute_ms is None or n_params is None:
        objective, data = objectives.configured(config)
        x0 = np.ascontiguousarray(objective.initial(np.random.default_rng(config.seed)), config.device.dtype)
        n_params = n_params or x0.size
    if compute_ms is None:
        computer = devices.choose(config.device.kind, tf32=config.device.tf32)
        data = data and data.on(computer)
        sampler = Sampler(config.seed, 0, None if data is None else data.train, config.data.batch_size)
        parameters, gradient = computer.to_device(x0), computer.zeros(x0.size, x0.dtype)
        versions = iter(range(1 << 62))
        compute_s = _measure(
            lambda: float(objective.loss_and_gradient(parameters, sampler.batch(next(versions)), gradient))
        )
        origin.insert(0, f"gradients measured here ({computer.name})")
    else:
        compute_s = np.array([compute_ms / 1e3])
    pass_s = _copying_s(n_params, config.device.dtype)
    return Times([_quantiles(compute_s)], [[0.0]], pass_s, n_params, ", ".join(origin))


def check_exchange(config: Config, where: str = "") -> None:
    if not traits_of(config.exchange.kind).gives_times:
        able = " or ".join(kinds_with("gives_times"))
        raise ConfigError(f"{where}`exchange.kind` must be {able} to plan with, got {config.exchange.kind!r}")
    if config.exchange.every == "auto":
        raise ConfigError(f"{where}`exchange.every` must be a number to plan with, got 'auto'")


def neighbours_of(config: Config, nodes: Sequence) -> list[tuple[int, ...]] | None:
    if not traits_of(config.exchange.kind).topologies:
        return [()] * len(nodes)
    if config.exchange.topology == "complete":
        return None
    return all_tree_neighbours(config.exchange.topology, nodes, fan_out=config.exchange.fan_out)


def _delays_s(config: Config, rank: int, n_gradients: int) -> np.ndarray:
    """What a run added to each step of a rank."""
    delays_s = stragglers.delays_s(config, rank)
    return np.zeros(n_gradients) if delays_s is None else np.fromiter(delays_s, float, n_gradients)


def _mean_exchange(run: Run, rank: int, neighbours) -> tuple[int, float]:
    """Neighbours that a rank has, and passes over memory that its steps made on average."""
    every = run.config.exchange.every
    others = np.delete(np.arange(run.n_ranks), rank) if neighbours is None else list(neighbours[rank])
    degree = len(others)
    n_store = store_passes(degree, inner=neighbours is not None and degree > 1)
    if "transferred_bytes" in run.attributes:
        n_vector_bytes = 0 if neighbours is None else 8 * run.n_ranks
        transferred = np.atleast_1d(run.attributes["transferred_bytes"])[rank]
        n_news = transferred / (run.x0.nbytes + n_vector_bytes) / run.counts[rank]
    else:  # at most, there are news at each exchange of whoever makes as many steps
        n_news = np.minimum(1, run.counts[others] / (run.counts[rank] / every)).sum() / every
    # Of the news about half come in `pull`, if any do.
    return degree, n_store + READ_PASSES * n_news + sum_passes(degree) * min(1 / every, n_news / 2)


def _copying_s(n_params: int, dtype) -> float:
    """Time of one pass over an array here: half of that of a copy."""
    source, target = np.zeros((2, n_params), dtype)
    return float(np.median(_measure(lambda: np.copyto(target, source), _MEASURE_S / 4))) / 2


def _without_waiting(times_s: np.ndarray, stretch: float) -> np.ndarray:
    """Cut the longest times so that the mean becomes the `stretch`-th part of what it is."""
    ascending = np.sort(np.maximum(times_s, 0))
    if stretch == 1:
        return ascending
    # Mean of the times if all behind the k-th are cut to it.
    n_behind = np.arange(ascending.size - 1, -1, -1)
    means = (np.cumsum(ascending) + n_behind * ascending) / ascending.size
    return np.minimum(ascending, np.interp(means[-1] / stretch, [0, *means], [0, *ascending]))


def _quantiles(values: np.ndarray) -> list[float]:
    """Means of equal parts of the sorted values: as few numbers as that, with the same mean."""
    parts = np.array_split(np.sort(values), min(_QUANTILES, values.size))
    return [float(part.mean()) for part in parts]


def _measure(call, seconds: float = _MEASURE_S) -> np.ndarray:
    """Time single calls for so long; the first one does not count."""
    call()
    times, end_s = [], time.perf_counter() + seconds
    while not times or time.perf_counter() < end_s:
        begun_s = time.perf_counter()
        call()
        times.append(time.perf_counter() - begun_s)
    return np.array(times)
