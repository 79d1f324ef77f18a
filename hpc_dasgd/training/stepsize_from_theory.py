"""Stepsize from theory (``optimizer.stepsize = "bound"``), chosen before the first step.

See ``docs/theory.md``, "Stepsizes from a bound".
"""

import json
import platform
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from hpc_dasgd.arrays.types import Array, Float64s, Int64s
from hpc_dasgd.config.settings import Config
from hpc_dasgd.data.dataset import Sampler
from hpc_dasgd.errors import TrainingError
from hpc_dasgd.exchange import registry
from hpc_dasgd.exchange.interface import IDLE_S, Exchange, ExchangeSetup
from hpc_dasgd.runtime.clock import Clock
from hpc_dasgd.runtime.collective import on_rank_0
from hpc_dasgd.theory.bounds import Constants, Delays
from hpc_dasgd.theory.choice import choose_stepsize
from hpc_dasgd.theory.constants import probe_sampler
from hpc_dasgd.theory.staleness import measure
from hpc_dasgd.theory.version_vectors import causal_order
from hpc_dasgd.training import stragglers
from hpc_dasgd.training.generation_start import GenerationStart
from hpc_dasgd.training.problem import Problem

if TYPE_CHECKING:
    from mpi4py import MPI

PROBE_STEPS = 64  # steps per rank of a probe, on average
_EXCHANGES = 4  # exchanges per rank of a probe, at least


class ChosenStepsize(NamedTuple):
    """A stepsize, and what it was chosen from.

    Attributes
    ----------
    stepsize : float
    bound : str
        ``"A"`` or ``"B"``: the bound that is lowest, which this stepsize minimizes.
    constants : Constants
        Estimated at the first parameters.
    delays : Delays
        Measured by the probe.
    n_gradients : int
        Number of gradients that the budget of the run allows.
    """

    stepsize: float
    bound: str
    constants: Constants
    delays: Delays
    n_gradients: int

    def to_json(self) -> str:
        """Return this record as JSON text, for the attribute ``stepsize_chosen`` of ``run.h5``."""
        nested = {"constants": self.constants._asdict(), "delays": self.delays._asdict()}
        return json.dumps(self._asdict() | nested)


def resolve_stepsize(comm: "MPI.Intracomm", problem: Problem, start: GenerationStart) -> tuple[Config, str]:
    """Return settings whose stepsize is a number. Collective over `comm`.

    A stepsize that was chosen for a run is kept when the run is resumed.

    Parameters
    ----------
    comm : MPI.Intracomm
    problem : Problem
    start : GenerationStart

    Returns
    -------
    config : Config
    chosen : str
        How the stepsize was chosen, as JSON; empty if the settings give it.
    """
    config = problem.config
    if config.optimizer.stepsize != "bound":
        return config, ""
    chosen = start.stepsize_chosen or choose(comm, problem, start).to_json()
    return replace(config, optimizer=replace(config.optimizer, stepsize=json.loads(chosen)["stepsize"])), chosen


def choose(comm: "MPI.Intracomm", problem: Problem, start: GenerationStart) -> ChosenStepsize:
    """Choose the stepsize with the lowest bound. Collective over `comm`; takes as long as a few hundred steps.

    The constants are estimated at the first parameters, on rank 0, in host memory. The staleness is that of a probe:
    the ranks compute gradients and exchange updates of zero, as they will do in the run.

    Returns
    -------
    chosen : ChosenStepsize
        The same on every rank.

    Raises
    ------
    TrainingError
        On every rank, if the constants cannot be estimated.
    """
    config, data = problem.config, problem.data
    batches = probe_sampler(config.seed, None if data is None else data.train, config.data.batch_size)
    gradients_per_s, delays = _probe(comm, problem, start)

    def choose_on_rank_0() -> ChosenStepsize:
        assert delays is not None
        n_gradients = _n_gradients(config, gradients_per_s)
        try:
            name, stepsize, constants = choose_stepsize(
                problem.objective, batches, start.first_parameters, delays, n_gradients
            )
        except ValueError as error:
            raise TrainingError(f'`optimizer.stepsize` = "bound" cannot be determined: {error}') from None
        return ChosenStepsize(stepsize, name, constants, delays, n_gradients)

    return on_rank_0(comm, choose_on_rank_0)


def _n_gradients(config: Config, gradients_per_s: float) -> int:
    """Return how many gradients the budget allows."""
    budget = config.budget
    limits: list[float] = []
    if budget.gradients is not None:
        limits.append(budget.gradients)
    if budget.seconds is not None:
        limits.append(budget.seconds * gradients_per_s)
    return max(1, round(min(limits)))


class _Log:
    """Log of a probe on one rank: times and version vectors of its gradients."""

    def __init__(self, n_ranks: int):
        self._n_ranks = n_ranks
        self.starts_s: list[float] = []
        self.ends_s: list[float] = []
        self.versions: list[Int64s] = []

    def arrays(self) -> tuple[Float64s, Float64s, Int64s]:
        """Return starts, ends and version vectors."""
        versions: Int64s = np.array(self.versions, np.int64).reshape(-1, self._n_ranks)
        return np.array(self.starts_s), np.array(self.ends_s), versions


def _probe(comm: "MPI.Intracomm", problem: Problem, start: GenerationStart) -> tuple[float, Delays | None]:
    """Return gradients per second of all ranks and, on rank 0, their staleness, in a run of updates that are zero."""
    config, device, data = problem.config, problem.device, problem.data
    on_device = None if data is None else data.to_device(device).train
    batches = probe_sampler(config.seed, on_device, config.data.batch_size)
    setup = ExchangeSetup(comm, start.first_parameters, config.exchange, config.seed, device)
    exchange = registry.make_exchange(setup)
    log = _Log(comm.size)
    seconds = _train_with_zero_updates(problem, exchange, batches, log)
    exchange.settle()
    gradients_per_s = exchange.gradients / seconds
    exchange.free()
    logs: Any = comm.gather(log.arrays(), root=0)
    if comm.rank:
        return gradients_per_s, None
    starts, ends, versions = zip(*logs, strict=True)
    measured = measure(starts, causal_order(ends, versions), versions, every=1).as_dict()
    return gradients_per_s, Delays(*(float(measured[name]) for name in Delays._fields))


def _train_with_zero_updates(problem: Problem, exchange: Exchange, batches: Sampler, log: _Log) -> float:
    """Run the steps of a probe on this rank, and return the time they took, in s. Collective."""
    comm, config, device, objective = exchange.comm, problem.config, problem.device, problem.objective
    n_gradients = comm.size * max(PROBE_STEPS, _EXCHANGES * exchange.every)
    delays_s = stragglers.delays_s(config, comm.rank)
    gradient = device.zeros(exchange.parameters.size, exchange.parameters.dtype)
    # The first gradient may include compilation, which is not part of the run's speed.
    float(objective.loss_and_gradient(exchange.parameters, batches.batch(0), gradient))
    comm.Barrier()
    clock = Clock(comm, platform.node())
    while not exchange.stopping:
        exchange.pull()
        if exchange.gradients >= n_gradients:
            exchange.stop()
        if not exchange.computes:
            time.sleep(IDLE_S)
        elif not exchange.stopping:
            log.versions.append(exchange.versions.copy())
            log.starts_s.append(clock.now())
            loss = objective.loss_and_gradient(exchange.parameters, batches.batch(exchange.made), gradient)
            device.poll_until_done(exchange.read_on)
            float(loss)
            if delays_s is not None:
                time.sleep(next(delays_s))
            log.ends_s.append(clock.now())
            exchange.push(_zero_update)
    return clock.now()


def _zero_update(lo: int, hi: int, out: Array) -> None:
    out.fill(0)
