"""Evaluating a replica now and then."""

import math
from collections.abc import Callable

from hpc_dasgd.config.settings import Config
from hpc_dasgd.data.dataset import Dataset
from hpc_dasgd.errors import TrainingError

PIECE_ROWS = 4096


class Evaluation:
    """Evaluates a replica when due, and logs what came out.

    `evaluates` says whether it is on this rank to evaluate, which may change when ranks die.
    """

    def __init__(self, objective, data: Dataset | None, config: Config, log, evaluates: Callable[[], bool]):
        self._evaluate, self._evaluates = getattr(objective, "evaluate", None), evaluates
        self._data, self._config, self._log = data, config, log
        self._next_s = 0.0
        self.loss = self.accuracy = math.nan

    def due(self, now_s: float) -> bool:
        if self._evaluate is None or now_s < self._next_s:
            return False
        evaluates = self._evaluates()
        if not evaluates:  # to be asked again when it would be time
            self._next_s = now_s + self._config.log.evaluate_every_s
        return evaluates

    def run(self, replicas, now_s: float, consensus_distance: float | None = None) -> bool:
        """Evaluate now; True where the target loss is reached.

        The consensus distance is asked of `replicas` where it is not given.
        """
        if self._evaluate is None or not self._evaluates():
            return False
        self._next_s = now_s + self._config.log.evaluate_every_s
        metrics = self._metrics(replicas.parameters)
        target = self._config.budget.target_loss
        if target is not None and "loss" not in metrics:
            raise TrainingError(f"`budget.target_loss` needs a loss from `evaluate`, got {sorted(metrics)}")
        self.loss, self.accuracy = metrics.get("loss", math.nan), metrics.get("accuracy", math.nan)
        if consensus_distance is None:
            consensus_distance = replicas.consensus_distance()
        self._log.append_evaluation(now_s, replicas.gradients, self.loss, self.accuracy, consensus_distance)
        return target is not None and self.loss <= target

    def _metrics(self, parameters) -> dict[str, float]:
        if self._data is None:
            return self._evaluate(parameters, None)
        sums, n_rows = {}, 0
        for piece in self._data.test.pieces(PIECE_ROWS):
            for name, mean in self._evaluate(parameters, piece).items():
                sums[name] = sums.get(name, 0.0) + mean * len(piece.x)
            n_rows += len(piece.x)
        return {name: total / n_rows for name, total in sums.items()}
