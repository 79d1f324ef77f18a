"""What to simulate before node hours are spent, and what came of it."""

import math
import os
from dataclasses import dataclass

import numpy as np

from hpc_dasgd import objectives
from hpc_dasgd.config.exchange_traits import kinds_with, traits_of
from hpc_dasgd.config.settings import Config
from hpc_dasgd.errors import ConfigError
from hpc_dasgd.plan.simulate import Forecast, Setup, simulate
from hpc_dasgd.plan.times import ASK_S, Times, check_exchange, neighbours_of
from hpc_dasgd.theory import choice, constants
from hpc_dasgd.theory.bounds import Delays

_PATIENCE_S = 60
_PERCENTS = (25, 50, 75, 90, 99)


@dataclass(frozen=True, kw_only=True)
class Machine:
    """Where the run is to take place.

    Attributes
    ----------
    n_ranks : int
    cores : int
        Of a node.
    ranks_per_node : int
    latency_s, bytes_per_s : float
        Of a read across nodes, as one rank sees it.
    """

    n_ranks: int
    cores: int
    ranks_per_node: int
    latency_s: float = 2e-6
    bytes_per_s: float = 10e9

    @property
    def nodes(self) -> list[int]:
        return [rank // self.ranks_per_node for rank in range(self.n_ranks)]


def plan(config: Config, machine: Machine, times: Times, seed: int = 0) -> dict:
    """Simulate what `config` would do on `machine`; everything in numbers that JSON can hold.

    Raises
    ------
    ConfigError
        If the settings ask for what cannot be simulated.
    """
    _check(config, machine)
    n_bytes = times.n_params * np.dtype(config.device.dtype).itemsize
    trees = traits_of(config.exchange.kind).plannable and config.exchange.topology != "complete"
    setup = Setup(
        nodes=machine.nodes,
        neighbours=neighbours_of(config, machine.nodes),
        compute_s=times.compute_s,
        overhead_s=times.overhead_s,
        pass_s=times.pass_s,
        ask_s=ASK_S,
        payload_bytes=n_bytes + (8 * machine.n_ranks if trees else 0),  # a tree's come with a version vector
        cores=machine.cores,
        latency_s=machine.latency_s,
        bytes_per_s=machine.bytes_per_s,
        every=config.exchange.every,
        straggler=config.straggler,
    )
    return _as_dict(simulate(setup, config.budget.gradients, seed), config, times)


def safe_stepsize(config: Config, found: dict) -> dict:
    """Which stepsize theory asks for with the staleness that was `found` by `plan`; constants are estimated.

    Returns
    -------
    stepsize : dict
        ``safe_stepsize``: the one of the lowest bound, and ``safe_by``, that bound's name; or None, and why.
    """
    if (reason := _why_no_stepsize(config, found)) is not None:
        return {"safe_stepsize": None, "safe_by": reason}
    reach = math.inf if found["W_max"] is None else found["W_max"]
    delays = Delays(found["S_avg"], found["S_rms"], found["S_max"], reach)
    n_gradients = max(1, round(found["gradients_per_s"] * found["seconds"]))
    try:
        objective, data = objectives.configured(config)
        x0 = np.asarray(objective.initial(np.random.default_rng(config.seed)), config.device.dtype)
        batches = constants.probe_sampler(config.seed, None if data is None else data.train, config.data.batch_size)
        name, stepsize, _ = choice.choose_stepsize(objective, batches, x0, delays, n_gradients)
    except Exception as error:  # of the user's objective, without which all else is known
        return {"safe_stepsize": None, "safe_by": str(error)}
    return {"safe_stepsize": stepsize, "safe_by": name}


def _why_no_stepsize(config: Config, found: dict) -> str | None:
    optimizer, seconds = config.optimizer, constants.MAX_GRADIENTS_PER_POINT * found["compute_ms"] / 1e3
    if found["seconds"] is None:
        return "`budget` sets neither gradients nor seconds"
    if optimizer.kind != "sgd" or optimizer.schedule not in ("constant", "staleness-adaptive"):
        return "theory knows one for sgd with a constant stepsize"
    if seconds > _PATIENCE_S:
        return f"to estimate its constants would take about {seconds:.0f} s"
    return None


def text(found: dict) -> str:
    """The result of `plan` as a table for the terminal."""
    lines = [
        f"{found['n_ranks']} ranks, times from {found['times']}",
        f"gradients per second  {found['gradients_per_s']:.4g}",
        "  ".join(f"{name} {found[name]:.4g}" for name in ("S_avg", "S_rms", "S_max")),
        "percentiles  " + ", ".join(f"{percent} % {value:.4g}" for percent, value in found["percentiles"].items()),
        f"read per second: by a rank {_bytes(found['bytes_per_s_per_rank'])}, over a link "
        f"{_bytes(found['bytes_per_s_per_link'])}, across nodes in all {_bytes(found['bytes_per_s_across_nodes'])}",
    ]
    if found["W_max"] is not None:
        lines.insert(3, f"W_max {found['W_max']:.4g}")
    if found["seconds"] is not None:
        lines.append(f"the budget takes {found['seconds']:.4g} s")
    if found.get("safe_stepsize") is not None:
        lines.append(f"safe stepsize {found['safe_stepsize']:.4g}, of the lowest bound ({found['safe_by']})")
    elif "safe_by" in found:
        lines.append(f"no safe stepsize: {found['safe_by']}")
    if not found["settled"]:
        lines.append("note: the whole run was simulated from its start on; it has hardly settled")
    if found["n_sources"] < found["n_ranks"]:
        lines.append(f"note: what is missed was followed for {found['n_sources']} ranks drawn at random, and scaled")
    return "\n".join(lines)


def available_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _check(config: Config, machine: Machine) -> None:
    check_exchange(config)
    if not traits_of(config.exchange.kind).plannable:
        able = " or ".join(kinds_with("plannable"))
        raise ConfigError(f"`exchange.kind` must be {able} to plan with, got {config.exchange.kind!r}")
    beyond = [rank for rank in config.straggler.ranks if rank >= machine.n_ranks]
    if beyond and config.straggler.delay_ms > 0:
        raise ConfigError(f"`straggler.ranks` must be below the number of ranks, {machine.n_ranks}, got {beyond[0]}")


def _as_dict(forecast: Forecast, config: Config, times: Times) -> dict:
    staleness = forecast.staleness
    rate = staleness.size / forecast.seconds
    budget = config.budget
    limits = [budget.seconds, budget.gradients and budget.gradients / rate]
    read_per_s = forecast.read_bytes / forecast.seconds
    return {
        "gradients_per_s": rate,
        "S_avg": float(staleness.mean()),
        "S_rms": math.sqrt(np.square(staleness).mean()),
        "S_max": float(staleness.max()),
        "W_max": forecast.W_max,
        "percentiles": dict(zip(map(str, _PERCENTS), np.percentile(staleness, _PERCENTS).tolist(), strict=True)),
        "n_ranks": forecast.n_ranks,
        "n_sources": forecast.n_sources,
        "seconds": min((limit for limit in limits if limit is not None), default=None),
        "bytes_per_s_per_rank": read_per_s / forecast.n_ranks,
        "bytes_per_s_per_link": read_per_s / max(1, forecast.n_links),
        "bytes_per_s_across_nodes": forecast.read_bytes_across / forecast.seconds,
        "simulated": int(staleness.size),
        "settled": forecast.n_dropped > 0,
        "n_params": times.n_params,
        "compute_ms": 1e3 * float(np.mean([np.mean(values) for values in times.compute_s])),
        "times": times.origin,
    }


def _bytes(count: float) -> str:
    power = min(4, int(math.log10(count)) // 3) if count >= 1 else 0
    return f"{count / 1000**power:.3g} {('B', 'kB', 'MB', 'GB', 'TB')[power]}"
