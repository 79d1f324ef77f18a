"""Session: one rank's part in a run, with everything that happens beside the computation of gradients.

A session owns the start, the steps and the end of a run, but not the loop: `loop.train_until_stopped` calls it, and so
can a loop that a user writes::

    while session.pull():
        step = session.begin_step()
        ...                                 # compute a gradient at session.exchange.parameters
        step.complete(loss)
        session.push(step, update)          # update(lo, hi, out) stores elements lo:hi
        session.record(step)
"""

from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from hpc_dasgd.arrays.devices import Device
from hpc_dasgd.config.exchange_traits import ExchangeTraits, traits_of
from hpc_dasgd.config.settings import BudgetConfig, Config
from hpc_dasgd.exchange.interface import Exchange
from hpc_dasgd.optim.interface import BlockFunction
from hpc_dasgd.runtime.clock import Clock
from hpc_dasgd.runtime.signals import StopSignals
from hpc_dasgd.storage.log_writer import RankLog
from hpc_dasgd.training.checkpointing import Checkpoints
from hpc_dasgd.training.evaluation import Evaluation
from hpc_dasgd.training.exchange_interval import IntervalTuner
from hpc_dasgd.training.generation_start import GenerationStart
from hpc_dasgd.training.progress import StepProgress
from hpc_dasgd.training.step import Step

if TYPE_CHECKING:
    from mpi4py import MPI


@dataclass(frozen=True, eq=False)
class RunContext:
    """What does not change during a run.

    Attributes
    ----------
    comm : MPI.Intracomm
    config : Config
        Settings; the stepsize is a number.
    directory : Path
        The run directory.
    start : GenerationStart
        Where this generation of the run begins, without its arrays.
    device : Device
    stepsize_chosen : str
        How the stepsize was chosen, as JSON; empty if the settings give it.
    """

    comm: "MPI.Intracomm"
    config: Config
    directory: Path
    start: GenerationStart
    device: Device
    stepsize_chosen: str

    @property
    def traits(self) -> ExchangeTraits:
        """What the exchange of the run can do."""
        return traits_of(self.config.exchange.kind)


@dataclass(frozen=True, eq=False)
class StepRecords:
    """Objects that the session calls by name for what happens beside the steps.

    Attributes
    ----------
    log : RankLog
    evaluation : Evaluation
    checkpoints : Checkpoints
    interval : IntervalTuner or None
        None if the number of steps between exchanges is fixed.
    progress : StepProgress
    """

    log: RankLog
    evaluation: Evaluation
    checkpoints: Checkpoints
    interval: IntervalTuner | None
    progress: StepProgress


class Session:
    """One rank's part in a run. A context manager, which closes the log and the progress bar.

    Parameters
    ----------
    context : RunContext
    exchange : Exchange
        Holds the replica.
    clock : Clock
    records : StepRecords
    signals : StopSignals
        Signals that request an early end of the run.

    Attributes
    ----------
    context, exchange, clock, records, signals
        As above.
    """

    def __init__(
        self, context: RunContext, exchange: Exchange, clock: Clock, records: StepRecords, signals: StopSignals
    ):
        self.context, self.exchange, self.clock, self.records, self.signals = context, exchange, clock, records, signals
        start = context.start
        self._gradients_before = start.gradients
        self._step = Step(
            now=clock.now,
            version_vector=exchange.versions.copy(),
            version_before=int(start.versions_before[context.comm.rank]),
            gradients_before=start.gradients,
        )
        self._resources = ExitStack()

    def __enter__(self) -> "Session":
        self._resources.enter_context(self.records.log)
        # Otherwise every rank would print NumPy's overflow warnings before the error that names the gradient.
        self._resources.enter_context(np.errstate(over="ignore", invalid="ignore"))
        self._resources.enter_context(self.records.progress)
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Write buffered entries to the log, and close the log and the progress bar. May be called more than once."""
        self._resources.close()

    @property
    def computes(self) -> bool:
        """Whether this rank computes gradients; one that does not still calls `pull`."""
        return self.exchange.computes

    @property
    def gradients(self) -> int:
        """Gradients of all ranks that this rank knows of, over all generations of the run."""
        return self._gradients_before + self.exchange.gradients

    def pull(self) -> bool:
        """Bring the replica up to date, evaluate it and save a checkpoint if it is time. Not collective.

        Returns
        -------
        continues : bool
            False if the budget is spent, or any rank has ended the run as far as this rank knows.
        """
        begun_s = self.clock.now()
        self.exchange.pull()
        now_s = self.clock.now()
        if self.records.interval is not None:
            self.records.interval.record(pull_s=now_s - begun_s, now_s=now_s)
        if self.records.evaluation.run_if_due(self.exchange, now_s) or self.signals.received:
            self.exchange.stop()
        elif _is_spent(self.context.config.budget, self.gradients, now_s):
            self.exchange.spent()
        if self.exchange.stopping:
            return False
        self.records.checkpoints.begin_if_due(now_s)
        return True

    def begin_step(self) -> Step:
        """Start a step: note version and version vector of the replica, and the time.

        Returns
        -------
        step : Step
            The same object at every call.
        """
        np.copyto(self._step.version_vector, self.exchange.versions)
        self._step.begin(self.exchange.made)
        return self._step

    def push(self, step: Step, update: BlockFunction) -> None:
        """Apply an own update to the replica and publish it. Not collective.

        Parameters
        ----------
        step : Step
            The computation of its gradient is complete.
        update : callable
            ``update(lo, hi, out)`` stores elements ``lo:hi`` of what is added to the parameters into `out`.
        """
        self.exchange.push(update)
        step.pushed_s = self.clock.now()

    def record(self, step: Step) -> None:
        """Log a step after its `push`, and show the progress of the run if it is time. Not collective."""
        self.records.log.append(
            step.begun_s,
            step.computed_s,
            step.loss,
            step.gradient_norm,
            step.version,
            step.version_vector,
            step.stepsize,
        )
        if self.records.interval is not None:
            self.records.interval.note_step(step)
        self.records.progress.record(step, self.exchange)


def _is_spent(budget: BudgetConfig, gradients: int, seconds: float) -> bool:
    return (budget.gradients is not None and gradients >= budget.gradients) or (
        budget.seconds is not None and seconds >= budget.seconds
    )
