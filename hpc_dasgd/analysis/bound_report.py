"""A run held against the bounds of ``theory.md`` and the rates of the paper. Needs no MPI."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from hpc_dasgd.analysis import replay
from hpc_dasgd.analysis.run import Run
from hpc_dasgd.config.exchange_traits import traits_of
from hpc_dasgd.errors import ConfigError
from hpc_dasgd.theory.bounds import Bound, Constants, Delays, paper_rates
from hpc_dasgd.theory.choice import CONSTANTS, both_bounds, constant_values, lowest_bound
from hpc_dasgd.theory.constants import KNOWN, MAX_GRADIENTS_PER_POINT, Estimate, Probe, estimate, probe, probe_sampler

_BLOCKS = 20  # of the run, whose means tell how far the mean of squared norms can be trusted
# That `hold` takes at most without a replay: variances and curvatures at two points.
GRADIENTS = 2 * MAX_GRADIENTS_PER_POINT
_VISITS = 200  # replicas that are probed in a replay
_HOW = {
    "log": "logged norms less the known variance",
    "replay": "at recomputed replicas",
    "upper": "at most: the variance of gradients is in it; --replay takes it out",
}


@dataclass(frozen=True, eq=False)
class BoundReport:
    """A run beside its bounds. Made by `hold`.

    Attributes
    ----------
    measured, measured_error : float
        Mean squared norm of the gradient at the replicas, ``(1/T) sum_t ||grad f(y_t)||^2``, and its standard
        error; see `how`.
    how : str
        ``"log"``: the logged squared norms less the variance of a gradient, which the objective knows.
        ``"replay"``: measured at replicas that were recomputed. ``"upper"``: the logged squared norms, which
        the unknown variance of a gradient makes too large.
    stepsize : float
        Mean of those the run took.
    n_gradients : int
        ``T``.
    constants : dict of str to Estimate
        ``L, sigma, Q, F_0``.
    delays : Delays
    between_models : float
        Mean staleness between models.
    bounds : dict of str to Bound
        ``A`` and ``B``.
    warnings : list of str
        What the theory asks for and the run did not do.
    """

    measured: float
    measured_error: float
    how: str
    stepsize: float
    n_gradients: int
    constants: dict[str, Estimate]
    delays: Delays
    between_models: float
    bounds: dict[str, Bound]
    warnings: list[str] = field(default_factory=list)

    @property
    def values(self) -> Constants:
        """The constants without their errors."""
        return constant_values(self.constants)

    @property
    def best_stepsize(self) -> float:
        """The stepsize of the lowest bound of the two."""
        return lowest_bound(self.bounds)[1]

    def as_dict(self) -> dict:
        """Everything in numbers, lists and dicts that JSON can hold."""
        twice = both_bounds(self.values, self.delays.times(2), 2 * self.n_gradients)
        epsilon = max(self.measured, self.measured_error)
        rates = paper_rates(self.values, self.delays, self.between_models, epsilon) if epsilon > 0 else None
        return {
            "measured": self.measured,
            "measured_error": self.measured_error,
            "measured_by": self.how,
            **{name: _bound_dict(bound, self.stepsize) for name, bound in self.bounds.items()},
            "paper": rates and {"epsilon": epsilon, **rates},
            "stepsize": self.stepsize,
            "best_stepsize": self.best_stepsize,
            "gradients": self.n_gradients,
            "staleness": {**self.delays._asdict(), "between_models": self.between_models},
            "constants": {
                name: {"value": found.value, "error": _or_none(found.error), "source": found.source}
                for name, found in self.constants.items()
            },
            "twice_the_ranks": {name: bound.terms(self.stepsize) for name, bound in twice.items()},
            "warnings": self.warnings,
        }

    def table(self) -> str:
        """The same as text for the terminal."""
        numbers = self.as_dict()
        lines = [
            f"measured mean squared gradient norm: {self.measured:.4g} +- {self.measured_error:.2g} "
            f"({_HOW[self.how]}); {self.n_gradients} gradients at stepsize {self.stepsize:.4g}",
            "",
            f"{'bound':<7}{'value':>11}{'start':>11}{'noise':>11}{'staleness':>11}  condition",
        ]
        for name, bound in self.bounds.items():
            shown = numbers[name]
            terms = "".join(f"{shown['terms'][term]:>11.4g}" for term in ("start", "noise", "staleness"))
            met = "met" if shown["condition_met"] else "NOT met: this is no bound on the run"
            limit = f"stepsize at most {bound.largest_stepsize:.4g}: {met}"
            lines.append(f"{name:<7}{shown['value']:>11.4g}{terms}  {limit}")
        for name, bound in self.bounds.items():
            twice = numbers["twice_the_ranks"][name]
            lines.append(
                f"{name}: {numbers[name]['dominant']} dominates; lowest, {bound.value(bound.best_stepsize()):.4g}, at "
                f"stepsize {bound.best_stepsize():.4g}; with twice the ranks, the staleness and the gradients in the "
                f"same time {sum(twice.values()):.4g}"
            )
        lines += ["", f"{'constant':<10}{'value':>11}{'error':>11}  how it is known"]
        for name, found in self.constants.items():
            error = "-" if math.isnan(found.error) else f"{found.error:.2g}"
            lines.append(f"{name:<10}{found.value:>11.4g}{error:>11}  {found.source}")
        lines += ["", "  ".join(f"{name} {value:.4g}" for name, value in numbers["staleness"].items())]
        if numbers["paper"]:
            lines += ["", "rates of arXiv 2309.03754, up to a constant factor: gradients to the measured error"]
            for name in ("bounded_gradients", "any_gradients"):
                terms = "  ".join(f"{term} {value:.3g}" for term, value in numbers["paper"][name].items())
                lines.append(f"{name.replace('_', ' ')}: {terms}")
        return "\n".join([*lines, *(f"warning: {warning}" for warning in self.warnings)])


def compare_with_bounds(
    run: Run, given: Mapping[str, float] | None = None, *, objective=None, data=None, replays: bool = False
) -> BoundReport:
    """Evaluate the bounds on a run.

    Parameters
    ----------
    run : Run
        With version vectors and at least one gradient.
    given : mapping of str to float, optional
        Constants that are known better, of ``L, sigma, Q, F_0``.
    objective : optional
        What the run was made with, where it was passed to `train`.
    data : Dataset or path, optional
        In place of the data set that the settings name.
    replays : bool
        Whether to recompute the run and to probe 200 of its replicas, with 64 batches each: true gradients then,
        and a variance that holds for the whole run.

    Raises
    ------
    ConfigError
        If the run has no version vectors, or a constant is not given and cannot be estimated here.
    """
    staleness = run.staleness()
    numbers = staleness.as_dict()
    delays = Delays(*(float(numbers[name]) for name in Delays._fields))
    norms = run.gradients["gradient_norm"][np.argsort(run.gradients["t_end_s"])]
    constants = {name: Estimate(float(value), 0.0, "given") for name, value in (given or {}).items()}
    probes = []
    if replays or not {"L", "sigma", "F_0"} <= set(constants):
        try:
            estimated, probes = _estimate(run, objective, data, replays)
        except ValueError as error:  # a ConfigError is one too
            raise ConfigError(f"{error}; or give L, sigma and F_0 by --set") from None
        constants = estimated | constants
    if "Q" not in (given or {}):
        constants["Q"] = Estimate(float(norms.max()), math.nan, "largest norm of a gradient in the log")
    constants = {name: constants[name] for name in CONSTANTS}
    values = constant_values(constants)
    try:
        bounds = both_bounds(values, delays, norms.size)
    except ValueError as error:
        raise ConfigError(f"no bounds for {run.directory}: {error}") from None
    squares = norms**2
    if replays:
        how, squares = "replay", np.array([taken.mean_square for taken in probes])
    elif constants["sigma"].source == KNOWN:
        how, squares = "log", squares - values.sigma**2
    else:
        how = "upper"
    stepsizes = run.gradients["stepsize"]
    if np.isnan(stepsizes).any():  # a run of an earlier version
        stepsize = run.config.optimizer.stepsize
    else:
        stepsize = float(stepsizes[0] if np.all(stepsizes == stepsizes[0]) else stepsizes.mean())
    return BoundReport(
        measured=float(squares.mean()),
        measured_error=_error_of_mean(squares),
        how=how,
        stepsize=stepsize,
        n_gradients=norms.size,
        constants=constants,
        delays=delays,
        between_models=staleness.between_mean,
        bounds=bounds,
        warnings=_warnings(run),
    )


def _bound_dict(bound: Bound, stepsize: float) -> dict:
    terms = bound.terms(stepsize)
    return {
        "value": bound.value(stepsize),
        "condition_met": bound.condition_met(stepsize),
        "terms": terms,
        "dominant": max(terms, key=terms.get),
        "largest_stepsize": bound.largest_stepsize,
        "best_stepsize": bound.best_stepsize(),
    }


def _estimate(run: Run, objective, data, replays: bool) -> tuple[dict[str, Estimate], list[Probe]]:
    """Constants, and the probes they come from: of the start, of the end or of replicas all along."""
    config = run.config
    objective, data = run.objective(objective, data)
    batches = probe_sampler(config.seed, None if data is None else data.train, config.data.batch_size)
    points = [run.x0] if run.final is None else [run.x0, run.final]
    along = replay.visit(run, _VISITS, objective=objective, data=data) if replays else points
    probes = [probe(objective, batches, point) for point in along]
    start = [probe(objective, batches, run.x0)] if replays else []
    return estimate(objective, batches, points, start + probes), probes


def _error_of_mean(values: np.ndarray) -> float:
    """Standard error of the mean, from how far values lie from the mean of their block: not from their trend."""
    blocks = np.array_split(values, min(_BLOCKS, -(-values.size // 5)))
    residuals = np.concatenate([block - block.mean() for block in blocks])
    return float(residuals.std() / math.sqrt(values.size))


def _or_none(value: float) -> float | None:
    return None if math.isnan(value) else value


def _warnings(run: Run) -> list[str]:
    config, warnings = run.config, list(run.warnings)
    if config.optimizer.kind != "sgd":
        warnings.append(f"the bounds are for sgd, and `optimizer.kind` is {config.optimizer.kind}")
    if config.optimizer.schedule != "constant":
        warnings.append(
            f"the bounds are for a constant stepsize, and `optimizer.schedule` is {config.optimizer.schedule}; "
            "they are taken at its mean"
        )
    if not traits_of(config.exchange.kind).whole_updates:
        warnings.append(
            f"the bounds are for replicas that hold whole updates, and `exchange.kind` is {config.exchange.kind}"
        )
    return warnings
