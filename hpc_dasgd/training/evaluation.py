"""Evaluation of a replica at intervals during a run."""

import math
from collections.abc import Callable

from hpc_dasgd.arrays.types import Array
from hpc_dasgd.config.settings import Config
from hpc_dasgd.data.dataset import Dataset
from hpc_dasgd.errors import TrainingError
from hpc_dasgd.exchange.interface import Exchange
from hpc_dasgd.objectives.interface import Objective, can_evaluate
from hpc_dasgd.storage.log_writer import RankLog

PIECE_ROWS = 4096  # examples evaluated at once


class Evaluation:
    """Evaluates the replica of this rank when it is time, and logs the metrics. Not collective.

    Parameters
    ----------
    objective : Objective
        Nothing is evaluated if it has no method ``evaluate``.
    data : Dataset or None
        Its test split is the evaluation set; in host memory or on the device of the replica.
    config : Config
    log : RankLog
    evaluates : callable
        Returns True if this rank is the one that evaluates, which may change when ranks die.

    Attributes
    ----------
    loss, accuracy : float
        Metrics of the newest evaluation; nan before the first one, and if the objective does not measure them.
    """

    def __init__(
        self,
        objective: Objective,
        data: Dataset | None,
        config: Config,
        log: RankLog,
        evaluates: Callable[[], bool],
    ):
        self._evaluate = objective.evaluate if can_evaluate(objective) else None
        self._evaluates, self._data, self._config, self._log = evaluates, data, config, log
        self._next_s = 0.0
        self.loss = self.accuracy = math.nan

    def run_if_due(self, exchange: Exchange, now_s: float) -> bool:
        """Evaluate if the interval ``log.evaluate_every_s`` has passed. Returns True if the target loss is reached."""
        if self._evaluate is None or now_s < self._next_s:
            return False
        if not self._evaluates():
            self._next_s = now_s + self._config.log.evaluate_every_s
            return False
        return self.run(exchange, now_s)

    def run(self, exchange: Exchange, now_s: float, consensus_distance: float | None = None) -> bool:
        """Evaluate now. Returns True if the target loss is reached.

        Parameters
        ----------
        exchange : Exchange
            Holds the replica.
        now_s : float, s
            Time on the clock of the run.
        consensus_distance : float, optional
            Distance of the replicas from their mean; measured by `exchange` if not given.

        Raises
        ------
        TrainingError
            If there is a target loss, and the objective does not measure a loss.
        """
        if self._evaluate is None or not self._evaluates():
            return False
        self._next_s = now_s + self._config.log.evaluate_every_s
        metrics = self._metrics(exchange.parameters)
        target = self._config.budget.target_loss
        if target is not None and "loss" not in metrics:
            raise TrainingError(f"`budget.target_loss` needs a loss from `evaluate`, got {sorted(metrics)}")
        self.loss, self.accuracy = metrics.get("loss", math.nan), metrics.get("accuracy", math.nan)
        if consensus_distance is None:
            consensus_distance = exchange.consensus_distance()
        self._log.append_evaluation(now_s, exchange.gradients, self.loss, self.accuracy, consensus_distance)
        return target is not None and self.loss <= target

    def _metrics(self, parameters: Array) -> dict[str, float]:
        """Return the means of the metrics over the evaluation set, by name."""
        assert self._evaluate is not None
        if self._data is None:
            return dict(self._evaluate(parameters, None))
        sums: dict[str, float] = {}
        n_rows = 0
        for piece in self._data.test.batches(PIECE_ROWS):
            for name, mean in self._evaluate(parameters, piece).items():
                sums[name] = sums.get(name, 0.0) + mean * len(piece.x)
            n_rows += len(piece.x)
        return {name: total / n_rows for name, total in sums.items()}
