"""Set up the simulation for a configuration and a machine, and derive the results from it."""

import math
import os
from dataclasses import dataclass
from typing import Any

import numpy as np

from hpc_dasgd import objectives
from hpc_dasgd.config.exchange_traits import kinds_with, traits_of
from hpc_dasgd.config.settings import Config
from hpc_dasgd.console.formats import bytes_text, count_text, number_text
from hpc_dasgd.console.tables import Column, table_lines
from hpc_dasgd.errors import ConfigError
from hpc_dasgd.plan.simulate import SimulationResult, SimulationSetup, simulate
from hpc_dasgd.plan.times import POLL_S, Times, check_exchange, neighbours_of
from hpc_dasgd.theory import choice, constants
from hpc_dasgd.theory.bounds import Delays

_LONGEST_ESTIMATE_S = 60
_PERCENTS = (25, 50, 75, 90, 99)


@dataclass(frozen=True, kw_only=True)
class Machine:
    """The machine on which the run is to take place.

    Attributes
    ----------
    n_ranks : int
        Number of ranks of the run.
    cores : int
        Number of cores of a node.
    ranks_per_node : int
        Number of ranks on each node.
    latency_s : float, s
        Latency of a read across nodes.
    bytes_per_s : float, bytes/s
        Bandwidth of a read across nodes by one rank.
    """

    n_ranks: int
    cores: int
    ranks_per_node: int
    latency_s: float = 2e-6
    bytes_per_s: float = 10e9

    @property
    def nodes(self) -> list[int]:
        """Node of each rank."""
        return [rank // self.ranks_per_node for rank in range(self.n_ranks)]


def plan(config: Config, machine: Machine, times: Times, seed: int = 0) -> dict[str, Any]:
    """Simulate a run.

    Parameters
    ----------
    config : Config
    machine : Machine
    times : Times
        Times of the parts of a step.
    seed : int
        Seed of the simulation.

    Returns
    -------
    forecast : dict
        The forecast in numbers and strings that JSON can represent: ``gradients_per_s``, ``S_avg``, ``seconds`` (time
        in which the budget is used up, None if it has no such limit) and more.

    Raises
    ------
    ConfigError
        If a run with these settings cannot be simulated.
    """
    _check(config, machine)
    n_bytes = times.n_params * np.dtype(config.device.dtype).itemsize
    is_tree = traits_of(config.exchange.kind).plannable and config.exchange.topology != "complete"
    setup = SimulationSetup(
        nodes=machine.nodes,
        neighbours=neighbours_of(config, machine.nodes),
        compute_s=times.compute_s,
        overhead_s=times.overhead_s,
        pass_s=times.pass_s,
        poll_s=POLL_S,
        payload_bytes=n_bytes + (8 * machine.n_ranks if is_tree else 0),  # on a tree with version vectors
        cores=machine.cores,
        latency_s=machine.latency_s,
        bytes_per_s=machine.bytes_per_s,
        every=int(config.exchange.every),
        straggler=config.straggler,
    )
    return _as_dict(simulate(setup, config.budget.gradients, seed), config, times)


def safe_stepsize(config: Config, forecast: dict[str, Any]) -> dict[str, Any]:
    """Return the stepsize that minimizes the lower convergence bound for a forecast, with estimated constants.

    Parameters
    ----------
    config : Config
    forecast : dict
        Result of `plan`.

    Returns
    -------
    stepsize : dict
        ``safe_stepsize``: the stepsize that minimizes the lower of the bounds, and ``safe_by``: the name of that
        bound. If no stepsize can be computed: None, and the reason.
    """
    if (reason := _reason_without_stepsize(config, forecast)) is not None:
        return {"safe_stepsize": None, "safe_by": reason}
    reach = math.inf if forecast["W_max"] is None else forecast["W_max"]
    delays = Delays(forecast["S_avg"], forecast["S_rms"], forecast["S_max"], reach)
    n_gradients = max(1, round(forecast["gradients_per_s"] * forecast["seconds"]))
    try:
        objective, data = objectives.configured(config)
        x0 = np.asarray(objective.initial(np.random.default_rng(config.seed)), config.device.dtype)
        batches = constants.probe_sampler(config.seed, None if data is None else data.train, config.data.batch_size)
        name, stepsize, _ = choice.choose_stepsize(objective, batches, x0, delays, n_gradients)
    except Exception as error:  # a failure of the user's objective must not discard the rest of the forecast
        return {"safe_stepsize": None, "safe_by": str(error)}
    return {"safe_stepsize": stepsize, "safe_by": name}


def text(forecast: dict[str, Any]) -> str:
    """Return the result of `plan` and `safe_stepsize` as a table for the terminal."""
    percentiles = (f"{percent} %: {number_text(value)}" for percent, value in forecast["percentiles"].items())
    rows = [
        ("gradients per second", number_text(forecast["gradients_per_s"])),
        *((name, number_text(forecast[name])) for name in ("S_avg", "S_rms", "S_max")),
        *([("W_max", number_text(forecast["W_max"]))] if forecast["W_max"] is not None else []),
        ("percentiles of the staleness", ", ".join(percentiles)),
        ("read by a rank", f"{bytes_text(forecast['bytes_per_s_per_rank'])}/s"),
        ("read over a link", f"{bytes_text(forecast['bytes_per_s_per_link'])}/s"),
        ("read across nodes by all ranks", f"{bytes_text(forecast['bytes_per_s_across_nodes'])}/s"),
        *([("time of the budget", f"{forecast['seconds']:.4g} s")] if forecast["seconds"] is not None else []),
    ]
    if forecast.get("safe_stepsize") is not None:
        rows.append(("safe stepsize", f"{forecast['safe_stepsize']:.4g}, by the lower bound ({forecast['safe_by']})"))
    elif "safe_by" in forecast:
        rows.append(("no safe stepsize", forecast["safe_by"]))
    notes = []
    if not forecast["settled"]:
        notes.append("note: the whole run was simulated, warm-up included; it is too short for a steady state")
    if forecast["n_sources"] < forecast["n_ranks"]:
        sources = f"{forecast['n_sources']} ranks drawn at random"
        notes.append(f"note: staleness was computed from the updates of {sources} and scaled to all ranks")
    title = f"{count_text(forecast['n_ranks'], 'rank')}, times from {forecast['times']}"
    columns = (Column("quantity", numeric=False), Column("forecast", numeric=False))
    return "\n".join([title, *table_lines(columns, rows), *notes])


def available_cores() -> int:
    """Return the number of cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _reason_without_stepsize(config: Config, forecast: dict[str, Any]) -> str | None:
    """Return why no stepsize can be computed; None if it can."""
    optimizer, seconds = config.optimizer, constants.MAX_GRADIENTS_PER_POINT * forecast["compute_ms"] / 1e3
    if forecast["seconds"] is None:
        return "`budget` sets neither gradients nor seconds"
    if optimizer.kind != "sgd" or optimizer.schedule not in ("constant", "staleness-adaptive"):
        return "the bounds hold only for sgd with a constant stepsize"
    if seconds > _LONGEST_ESTIMATE_S:
        return f"estimating the constants of the bounds would take about {seconds:.0f} s"
    return None


def _check(config: Config, machine: Machine) -> None:
    """Raise `ConfigError` if a run with these settings cannot be simulated."""
    check_exchange(config)
    if not traits_of(config.exchange.kind).plannable:
        able = " or ".join(kinds_with("plannable"))
        raise ConfigError(f"`exchange.kind` must be {able} to plan with, got {config.exchange.kind!r}")
    beyond = [rank for rank in config.straggler.ranks if rank >= machine.n_ranks]
    if beyond and config.straggler.delay_ms > 0:
        raise ConfigError(f"`straggler.ranks` must be below the number of ranks, {machine.n_ranks}, got {beyond[0]}")


def _as_dict(result: SimulationResult, config: Config, times: Times) -> dict[str, Any]:
    """Return the forecast; see `plan`."""
    staleness = result.staleness
    rate = staleness.size / result.seconds
    budget = config.budget
    limits = [budget.seconds, budget.gradients and budget.gradients / rate]
    read_per_s = result.read_bytes / result.seconds
    return {
        "gradients_per_s": rate,
        "S_avg": float(staleness.mean()),
        "S_rms": math.sqrt(np.square(staleness).mean()),
        "S_max": float(staleness.max()),
        "W_max": result.W_max,
        "percentiles": dict(zip(map(str, _PERCENTS), np.percentile(staleness, _PERCENTS).tolist(), strict=True)),
        "n_ranks": result.n_ranks,
        "n_sources": result.n_sources,
        "seconds": min((limit for limit in limits if limit is not None), default=None),
        "bytes_per_s_per_rank": read_per_s / result.n_ranks,
        "bytes_per_s_per_link": read_per_s / max(1, result.n_links),
        "bytes_per_s_across_nodes": result.read_bytes_across / result.seconds,
        "simulated": int(staleness.size),
        "settled": result.n_warm_up > 0,
        "n_params": times.n_params,
        "compute_ms": 1e3 * float(np.mean([np.mean(values) for values in times.compute_s])),
        "times": times.origin,
    }
