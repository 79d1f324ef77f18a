"""Comparison of a run with the convergence bounds of ``docs/theory.md`` and with the rates of the paper. No MPI."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import numpy as np

from hpc_dasgd.analysis import replay
from hpc_dasgd.analysis.run import DatasetSource, Run
from hpc_dasgd.arrays.arithmetic import ceil_div
from hpc_dasgd.arrays.types import Float64s
from hpc_dasgd.config.exchange_traits import traits_of
from hpc_dasgd.errors import ConfigError
from hpc_dasgd.objectives.interface import Objective
from hpc_dasgd.theory.bounds import Bound, Constants, Delays, paper_rates
from hpc_dasgd.theory.choice import CONSTANT_NAMES, both_bounds, constant_values, lowest_bound
from hpc_dasgd.theory.constants import (
    KNOWN_TO_OBJECTIVE,
    MAX_GRADIENTS_PER_POINT,
    Estimate,
    Probe,
    estimate,
    probe,
    probe_sampler,
)

MAX_GRADIENTS = 2 * MAX_GRADIENTS_PER_POINT
"""Largest number of gradients that `compare_with_bounds` computes without a replay: those of probes at two points."""

Method: TypeAlias = Literal["log", "replay", "upper"]
"""How the mean squared gradient norm was measured; see `BoundReport.measured_by`."""

_ERROR_BLOCKS = 20  # largest number of blocks whose means are subtracted before a standard error is computed
_VALUES_PER_BLOCK = 5  # in a short run, which has fewer blocks
_REPLAY_SAMPLES = 200  # replicas that a replay probes


@dataclass(frozen=True, eq=False)
class BoundReport:
    """Comparison of a run with its convergence bounds. Made by `compare_with_bounds`.

    Attributes
    ----------
    measured : float
        Mean squared norm of the gradient at the replicas, ``(1/T) sum_t ||grad f(y_t)||^2``.
    measured_error : float
        Standard error of `measured`.
    measured_by : {"log", "replay", "upper"}
        ``"log"``: from the logged squared norms, minus the variance of a gradient, which the objective states.
        ``"replay"``: from gradients at recomputed replicas. ``"upper"``: from the logged squared norms, which contain
        the unknown variance of a gradient, so that `measured` is too large.
    stepsize : float
        Mean stepsize of the run.
    n_gradients : int
        Number of gradients ``T``.
    constants : dict of str to Estimate
        Constants ``L, sigma, Q, F_0`` of the objective.
    delays : Delays
        Staleness of the run.
    between_models : float
        Mean staleness between two models.
    bounds : dict of str to Bound
        Bounds ``A`` and ``B``.
    warnings : list of str
        Warnings about the run, and assumptions of the bounds that it does not meet.
    """

    measured: float
    measured_error: float
    measured_by: Method
    stepsize: float
    n_gradients: int
    constants: dict[str, Estimate]
    delays: Delays
    between_models: float
    bounds: dict[str, Bound]
    warnings: list[str] = field(default_factory=list)

    @property
    def constant_values(self) -> Constants:
        """Values of the constants, without their errors."""
        return constant_values(self.constants)

    @property
    def best_stepsize(self) -> float:
        """Stepsize at which the lower of the two bounds is lowest."""
        return lowest_bound(self.bounds)[1]

    def as_dict(self) -> dict[str, Any]:
        """Return all results as numbers, lists and dicts: the object that ``bound --json`` prints."""
        twice = both_bounds(self.constant_values, self.delays.times(2), 2 * self.n_gradients)
        epsilon = max(self.measured, self.measured_error)
        paper: dict[str, Any] | None = None
        if epsilon > 0:
            paper = {"epsilon": epsilon}
            paper.update(paper_rates(self.constant_values, self.delays, self.between_models, epsilon))
        return {
            "measured": self.measured,
            "measured_error": self.measured_error,
            "measured_by": self.measured_by,
            **{name: _bound_as_dict(bound, self.stepsize) for name, bound in self.bounds.items()},
            "paper": paper,
            "stepsize": self.stepsize,
            "best_stepsize": self.best_stepsize,
            "gradients": self.n_gradients,
            "staleness": {**self.delays._asdict(), "between_models": self.between_models},
            "constants": {
                name: {
                    "value": constant.value,
                    "error": None if math.isnan(constant.error) else constant.error,
                    "source": constant.source,
                }
                for name, constant in self.constants.items()
            },
            "twice_the_ranks": {name: bound.terms(self.stepsize) for name, bound in twice.items()},
            "warnings": self.warnings,
        }


def compare_with_bounds(
    run: Run,
    given: Mapping[str, float] | None = None,
    *,
    objective: Objective | None = None,
    data: DatasetSource | None = None,
    with_replay: bool = False,
) -> BoundReport:
    """Evaluate the convergence bounds for a run and compare them with its measured gradient norms.

    The bounds assume that delays do not depend on the samples drawn, and that the number of gradients ``T`` is fixed.
    With ``budget.target_loss``, ``T`` is a stopping time, for which the bounds are not proved.

    Parameters
    ----------
    run : Run
        A run with version vectors and at least one gradient.
    given : mapping of str to float, optional
        Values for some of the constants ``L, sigma, Q, F_0``. They replace what the objective states and what would
        be estimated. If ``Q`` is not given, it is the largest logged gradient norm, even if the objective states it.
    objective : Objective, optional
        The objective, if it was passed to `hpc_dasgd.train`.
    data : Dataset or path, optional
        Replaces the data set that the run names.
    with_replay : bool
        Whether to recompute the run and to probe up to 200 of its replicas, with 64 batches each. This measures the
        norms of the mean gradients, and a variance that holds for the whole run.

    Returns
    -------
    report : BoundReport

    Raises
    ------
    ConfigError
        If the run has no version vectors, or a constant is not given and cannot be estimated.
    """
    staleness = run.staleness()
    numbers = staleness.as_dict()
    delays = Delays(*(float(numbers[name]) for name in Delays._fields))
    norms = run.gradients["gradient_norm"][np.argsort(run.gradients["t_end_s"])]
    constants, probes = _constants(run, given or {}, norms, objective, data, with_replay)
    try:
        bounds = both_bounds(constant_values(constants), delays, norms.size)
    except ValueError as error:
        raise ConfigError(f"no bounds for {run.directory}: {error}") from None
    measured_by, squares = _squared_norms(norms, constants["sigma"], probes if with_replay else None)
    return BoundReport(
        measured=float(squares.mean()),
        measured_error=_standard_error(squares),
        measured_by=measured_by,
        stepsize=_mean_stepsize(run),
        n_gradients=norms.size,
        constants=constants,
        delays=delays,
        between_models=staleness.between_mean,
        bounds=bounds,
        warnings=[*run.warnings, *_unmet_assumptions(run)],
    )


def _constants(
    run: Run,
    given: Mapping[str, float],
    norms: Float64s,
    objective: Objective | None,
    data: DatasetSource | None,
    with_replay: bool,
) -> tuple[dict[str, Estimate], list[Probe]]:
    """Return the constants (given values, otherwise estimates, with ``Q`` from the logged norms) and the probes."""
    constants: dict[str, Estimate] = {}
    probes: list[Probe] = []
    if with_replay or not {"L", "sigma", "F_0"} <= set(given):
        try:
            constants, probes = _estimate(run, objective, data, with_replay)
        except ValueError as error:  # includes ConfigError
            raise ConfigError(f"{error}; or give L, sigma and F_0 by --set") from None
    constants["Q"] = Estimate(float(norms.max()), math.nan, "largest norm of a gradient in the log")
    constants |= {name: Estimate(float(value), 0.0, "given") for name, value in given.items()}
    return {name: constants[name] for name in CONSTANT_NAMES}, probes


def _bound_as_dict(bound: Bound, stepsize: float) -> dict[str, Any]:
    """Return the values of one bound for JSON."""
    terms = bound.terms(stepsize)
    return {
        "value": bound.value(stepsize),
        "condition_met": bound.condition_met(stepsize),
        "terms": terms,
        "dominant": max(terms, key=lambda term: terms[term]),
        "largest_stepsize": bound.largest_stepsize,
        "best_stepsize": bound.best_stepsize(),
    }


def _estimate(
    run: Run, objective: Objective | None, data: DatasetSource | None, with_replay: bool
) -> tuple[dict[str, Estimate], list[Probe]]:
    """Return the constants of the objective, and the probes at ``x_0`` and the final parameters, or at replicas."""
    config = run.config
    objective, dataset = run.objective(objective, data)
    batches = probe_sampler(config.seed, None if dataset is None else dataset.train, config.data.batch_size)
    points = [run.x0] if run.final is None else [run.x0, run.final]
    if with_replay:
        replicas = replay.sample_replicas(run, _REPLAY_SAMPLES, objective=objective, data=dataset)
        probes = [probe(objective, batches, replica) for replica in replicas]
        start = [probe(objective, batches, run.x0)]
        return estimate(objective, batches, points, start + probes), probes
    probes = [probe(objective, batches, point) for point in points]
    return estimate(objective, batches, points, probes), probes


def _squared_norms(norms: Float64s, sigma: Estimate, probes: list[Probe] | None) -> tuple[Method, Float64s]:
    """Return how squared gradient norms were measured, and their values: from `probes`, or else from the log."""
    if probes is not None:
        return "replay", np.array([replica.mean_square for replica in probes])
    if sigma.source == KNOWN_TO_OBJECTIVE:
        return "log", norms**2 - sigma.value**2
    return "upper", norms**2


def _mean_stepsize(run: Run) -> float:
    """Return the mean logged stepsize, or that of the settings if an earlier version wrote a log without stepsizes."""
    stepsizes = run.gradients["stepsize"]
    if np.isnan(stepsizes).any():
        return float(run.config.optimizer.stepsize)
    # The mean of equal numbers may differ from them in the last bit.
    return float(stepsizes[0] if np.all(stepsizes == stepsizes[0]) else stepsizes.mean())


def _standard_error(values: Float64s) -> float:
    """Return the standard error of the mean, from deviations from block means, so that a trend does not add to it."""
    blocks = np.array_split(values, min(_ERROR_BLOCKS, ceil_div(values.size, _VALUES_PER_BLOCK)))
    residuals = np.concatenate([block - block.mean() for block in blocks])
    return float(residuals.std() / math.sqrt(values.size))


def _unmet_assumptions(run: Run) -> list[str]:
    """Return warnings about settings that the bounds do not cover."""
    config, warnings = run.config, []
    if config.optimizer.kind != "sgd":
        warnings.append(f"the bounds are for sgd, and `optimizer.kind` is {config.optimizer.kind}")
    if config.optimizer.schedule != "constant":
        warnings.append(
            f"the bounds are for a constant stepsize, and `optimizer.schedule` is {config.optimizer.schedule}; "
            "they are evaluated at the mean stepsize"
        )
    if not traits_of(config.exchange.kind).whole_updates:
        warnings.append(
            f"the bounds are for replicas that contain whole updates, and `exchange.kind` is {config.exchange.kind}"
        )
    return warnings
