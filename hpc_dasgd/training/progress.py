"""Progress of a run, shown by rank 0 while it trains."""

from hpc_dasgd.console.progress import Progress
from hpc_dasgd.exchange.interface import Exchange
from hpc_dasgd.training.step import Step


class StepProgress:
    """Counts what the gradients of this rank have missed, and shows it when it is time. A context manager.

    Parameters
    ----------
    progress : Progress
        The bar or the lines that are shown; on ranks that show nothing this object does nothing.
    """

    def __init__(self, progress: Progress):
        self._progress, self._missed = progress, 0

    def __enter__(self) -> "StepProgress":
        self._progress.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.__exit__()

    def record(self, step: Step, exchange: Exchange) -> None:
        """Count a step after its update was published."""
        if not self._progress.shown:
            return
        self._missed += exchange.missed(step.version_vector)
        if self._progress.due(step.computed_s):
            self._progress.show(
                step.computed_s,
                steps=step.version + 1,
                gradients=step.gradients_before + exchange.gradients,
                missed=self._missed,
                loss=step.loss,
            )
