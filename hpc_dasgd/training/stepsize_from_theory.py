"""The stepsize that theory asks for, chosen before the first step."""

import json
import platform
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from hpc_dasgd.config.settings import Config
from hpc_dasgd.errors import TrainingError
from hpc_dasgd.exchange import registry
from hpc_dasgd.exchange.interface import IDLE_S
from hpc_dasgd.runtime import collective
from hpc_dasgd.runtime.clock import Clock
from hpc_dasgd.theory.bounds import Constants, Delays
from hpc_dasgd.theory.choice import choose_stepsize
from hpc_dasgd.theory.constants import probe_sampler
from hpc_dasgd.theory.staleness import measure
from hpc_dasgd.theory.version_vectors import causal_order

PROBE_STEPS = 64  # of each rank, on average
_EXCHANGES = 4  # of each rank, at the least


class Chosen(NamedTuple):
    """A stepsize, and what it comes from.

    Attributes
    ----------
    stepsize : float
    bound : str
        ``"A"`` or ``"B"``: the one that this stepsize makes lowest.
    constants : Constants
    delays : Delays
        As measured by the probe.
    n_gradients : int
        That the run will make, by its budget.
    """

    stepsize: float
    bound: str
    constants: Constants
    delays: Delays
    n_gradients: int


def resolve_stepsize(
    comm, config: Config, device, objective, data, start, delays_s: Iterator[float] | None
) -> tuple[Config, str]:
    """Return settings whose stepsize is a number, and as JSON what it comes from, if it was chosen. Collective.

    What was chosen for a run stays when it is resumed. `start` is a `resume.Start`, the others are as for `choose`.
    """
    if config.optimizer.stepsize != "bound":
        return config, ""
    chosen = start.chosen
    if not chosen:
        chosen = json.dumps(_as_dict(choose(comm, config, device, objective, data, start.x0, delays_s)))
    return replace(config, optimizer=replace(config.optimizer, stepsize=json.loads(chosen)["stepsize"])), chosen


def choose(comm, config: Config, device, objective, data, x0: np.ndarray, delays_s: Iterator[float] | None) -> Chosen:
    """Choose the stepsize with the lowest bound. Collective; takes as long as some hundred steps.

    The constants are estimated at `x0`. The staleness is that of a probe: ranks take gradients, and exchange
    updates of zero, as they will in the run.

    Parameters
    ----------
    comm : MPI.Intracomm
    config : Config
    device : Host or Gpu
        Where the ranks of the probe take their gradients; the constants are estimated in host memory.
    objective : Objective
    data : Dataset or None
    x0 : ndarray, shape (n_params,)
    delays_s : iterator of float, s, or None
        By which this rank slows its steps down on purpose.

    Returns
    -------
    chosen : Chosen
        The same on every rank.
    """
    batches, probed = (
        probe_sampler(config.seed, each and each.train, config.data.batch_size)
        for each in (data, data and data.on(device))
    )
    gradients_per_s, delays = _probe_staleness(comm, config, device, objective, probed, x0, delays_s)
    # On rank 0 alone: the others would estimate the same.
    return comm.bcast(
        collective.raise_on_all_ranks(
            comm, lambda: _choose(config, objective, batches, x0, gradients_per_s, delays) if comm.rank == 0 else None
        ),
        root=0,
    )


def _as_dict(chosen: Chosen) -> dict:
    return chosen._asdict() | {"constants": chosen.constants._asdict(), "delays": chosen.delays._asdict()}


def _choose(config: Config, objective, batches, x0, gradients_per_s: float, delays: Delays) -> Chosen:
    budget = config.budget
    limits = [budget.gradients] if budget.gradients is not None else []
    limits += [budget.seconds * gradients_per_s] if budget.seconds is not None else []
    n_gradients = max(1, round(min(limits)))
    try:
        name, stepsize, constants = choose_stepsize(objective, batches, x0, delays, n_gradients)
    except ValueError as error:
        raise TrainingError(f'`optimizer.stepsize` = "bound" has nothing to choose by: {error}') from None
    return Chosen(stepsize, name, constants, delays, n_gradients)


def _probe_staleness(comm, config: Config, device, objective, batches, x0, delays_s) -> tuple[float, Delays | None]:
    """Gradients per second of all ranks, and on rank 0 their staleness, in a run whose updates are zero."""
    replicas = registry.make_exchange(config.exchange, comm, x0, config.seed, device)
    n_gradients = comm.size * max(PROBE_STEPS, _EXCHANGES * replicas.every)
    gradient, starts, ends, versions = device.zeros(x0.size, x0.dtype), [], [], []
    # What the first one alone costs, such as compiling, is not the run's pace.
    float(objective.loss_and_gradient(replicas.parameters, batches.batch(0), gradient))
    comm.Barrier()
    clock = Clock(comm, platform.node())
    while not replicas.stopping:
        replicas.pull()
        if replicas.gradients >= n_gradients:
            replicas.stop()
        if not replicas.computes:
            time.sleep(IDLE_S)
        elif not replicas.stopping:
            versions.append(replicas.versions.copy())
            starts.append(clock.now())
            loss = objective.loss_and_gradient(replicas.parameters, batches.batch(replicas.made), gradient)
            device.poll_until_done(replicas.read_on)
            float(loss)
            if delays_s is not None:
                time.sleep(next(delays_s))
            ends.append(clock.now())
            replicas.push(_no_change)
    seconds = clock.now()
    replicas.settle()
    gradients_per_s = replicas.gradients / seconds
    replicas.free()
    logs = comm.gather((np.array(starts), np.array(ends), np.array(versions).reshape(-1, comm.size)), root=0)
    if comm.rank:
        return gradients_per_s, None
    starts, ends, versions = zip(*logs, strict=True)
    measured = measure(starts, causal_order(ends, versions), versions, every=1).as_dict()
    return gradients_per_s, Delays(*(float(measured[name]) for name in Delays._fields))


def _no_change(lo: int, hi: int, out: np.ndarray) -> None:
    out.fill(0)
