"""Gradients of one rank, and the updates that its optimizer makes of them."""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

from hpc_dasgd.arrays.devices import Device
from hpc_dasgd.arrays.types import Array
from hpc_dasgd.config.settings import Config
from hpc_dasgd.data.dataset import Sampler
from hpc_dasgd.errors import TrainingError
from hpc_dasgd.exchange.interface import Exchange
from hpc_dasgd.objectives.interface import Objective
from hpc_dasgd.optim.interface import BlockFunction, Optimizer
from hpc_dasgd.optim.schedules import Schedule
from hpc_dasgd.training.step import Step


@dataclass(frozen=True, eq=False)
class Method:
    """How gradients become updates.

    Attributes
    ----------
    objective : Objective
    sampler : Sampler
        Batches of this rank.
    optimizer : Optimizer
    stepsize_at : Schedule
    delays_s : iterator of float, s, or None
        Delays that slow this rank down on purpose.
    """

    objective: Objective
    sampler: Sampler
    optimizer: Optimizer
    stepsize_at: Schedule
    delays_s: Iterator[float] | None


class GradientSource:
    """Computes the gradients of one rank on its device. Not collective.

    Parameters
    ----------
    method : Method
    exchange : Exchange
        Holds the replica that gradients are computed at.
    device : Device
    config : Config

    Attributes
    ----------
    objective : Objective
    optimizer : Optimizer
    """

    def __init__(self, method: Method, exchange: Exchange, device: Device, config: Config):
        self.objective, self.optimizer = method.objective, method.optimizer
        self._sampler, self._stepsize_at, self._delays_s = method.sampler, method.stepsize_at, method.delays_s
        self._exchange, self._device, self._config = exchange, device, config
        self._gradient: Array = device.zeros(exchange.parameters.size, exchange.parameters.dtype)

    def compute(self, step: Step) -> None:
        """Compute loss and gradient of a step at the current replica; reads continue during the computation.

        Raises
        ------
        TrainingError
            If the loss is not finite.
        """
        batch = self._sampler.batch(step.version_of_run)
        loss = self.objective.loss_and_gradient(self._exchange.parameters, batch, self._gradient)
        self._device.poll_until_done(self._exchange.read_on)
        loss = float(loss)
        if self._delays_s is not None:
            time.sleep(next(self._delays_s))
        step.complete(loss)
        if not math.isfinite(loss):
            raise TrainingError(f"loss is {loss} at {self._place_of(step)}")

    def update(self, step: Step) -> BlockFunction:
        """Return the update of a step, as a function of blocks; it stores norm and stepsize in `step` when called."""
        n_gradients = step.gradients_before + self._exchange.gradients
        staleness = partial(self._exchange.missed, step.version_vector)
        stepsize = partial(self._stepsize_at, n_gradients, staleness)
        return MeasuredUpdate(self.optimizer, self._gradient, stepsize, step, self._place_of)

    def _place_of(self, step: Step) -> str:
        stepsize = self._config.optimizer.stepsize
        remedy = f"a smaller `optimizer.stepsize` than {stepsize:g} may help"
        return f"gradient {step.version_of_run} of rank {self._exchange.comm.rank} ({remedy})"


class MeasuredUpdate:
    """Update of an optimizer; also measures the norm of the gradient while each block is in cache.

    The stepsize is determined when the exchange asks for the first block: by then it has read the newest publications
    of the neighbours, and the staleness of the gradient is known best.

    Parameters
    ----------
    optimizer : Optimizer
    gradient : array of the device, shape (n_params,)
    stepsize : callable
        Returns the stepsize.
    step : Step
        Its `stepsize` and `squared_norm` are set.
    place_of : callable
        Describes a step for an error message.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        gradient: Array,
        stepsize: Callable[[], float],
        step: Step,
        place_of: Callable[[Step], str],
    ):
        self._optimizer, self._gradient, self._stepsize = optimizer, gradient, stepsize
        self._step, self._place_of = step, place_of
        self._update: BlockFunction | None = None

    def __call__(self, lo: int, hi: int, out: Array) -> None:
        """Store elements ``lo:hi`` of the update into `out`.

        Raises
        ------
        TrainingError
            If the norm of the gradient is not finite; the update is not published then.
        """
        step = self._step
        if self._update is None:
            step.stepsize = self._stepsize()
            self._update = self._optimizer.update(self._gradient, step.stepsize)
        block = self._gradient[lo:hi]
        step.squared_norm += float(block @ block)
        if not math.isfinite(step.squared_norm):
            raise TrainingError(f"gradient norm is not finite at {self._place_of(step)}")
        self._update(lo, hi, out)
