"""Progress of work: a bar on a terminal, or lines in a file."""

import sys
from typing import Any, NamedTuple, Self

BAR_EVERY_S = 0.2
"""Time between two updates of the bar, s."""

LINE_EVERY_S = 10.0
"""Longest time between two lines, s; the first lines follow each other sooner."""


class _Shown(NamedTuple):
    """Numbers at the last update."""

    now_s: float
    steps: int
    gradients: int
    missed: int


class Progress:
    """Progress of a training run: steps, loss, gradients per second and mean staleness.

    It is a context manager, which closes the bar.

    Parameters
    ----------
    n_gradients : int or None
        The budget of gradients, if there is one.
    shown : bool
        False on ranks that show nothing.
    begun_s : float
        Time of the run's clock, s, at which this start of the run began.
    begun_gradients : int
        Number of gradients of all ranks before this start of the run.
    on_terminal : bool
        Whether standard error appears on a terminal. If so, a bar is drawn; if not, lines are printed.

    Attributes
    ----------
    shown : bool
        The parameter of that name.
    """

    def __init__(
        self,
        n_gradients: int | None,
        shown: bool,
        begun_s: float = 0.0,
        begun_gradients: int = 0,
        *,
        on_terminal: bool = False,
    ) -> None:
        self._n_gradients = n_gradients
        self._bar: Any = None
        self.shown = shown
        self._every_s = 1.0
        self._last = _Shown(begun_s, 0, begun_gradients, 0)
        if shown and on_terminal:
            from tqdm import tqdm

            self._bar = tqdm(
                total=n_gradients,
                initial=begun_gradients,
                unit=" gradients",
                unit_scale=True,
                file=sys.stderr,
                dynamic_ncols=True,
                miniters=1,
                mininterval=0.1,
            )
            self._every_s = BAR_EVERY_S
        self._next_s = begun_s + self._every_s

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def due(self, now_s: float) -> bool:
        """Return whether it is time to call `show`; always False if nothing is shown."""
        return self.shown and now_s >= self._next_s

    def show(self, now_s: float, *, steps: int, gradients: int, missed: int, loss: float) -> None:
        """Update the bar or print a line, after `due` has returned True.

        Parameters
        ----------
        now_s : float
            Time of the run's clock, in seconds.
        steps : int
            Number of steps of this rank so far.
        gradients : int
            Number of gradients of all ranks so far.
        missed : int
            Sum of the staleness of all gradients of this rank so far.
        loss : float
            Loss of the last step.
        """
        self._next_s = now_s + self._every_s
        last, self._last = self._last, _Shown(now_s, steps, gradients, missed)
        staleness = (missed - last.missed) / max(1, steps - last.steps)
        metrics = f"loss {loss:.4g}  staleness {staleness:.2g}"
        if self._bar is not None:
            self._bar.set_postfix_str(f"step {steps}  {metrics}", refresh=False)
            self._bar.update(gradients - self._bar.n)
            return
        self._every_s = min(2 * self._every_s, LINE_EVERY_S)
        rate = (gradients - last.gradients) / (now_s - last.now_s) if now_s > last.now_s else 0.0
        total = f"/{self._n_gradients}" if self._n_gradients else ""
        line = f"{now_s:8.1f} s  step {steps}  gradients {gradients}{total}  {rate:.0f}/s  {metrics}"
        print(line, file=sys.stderr, flush=True)


class StageBar:
    """A bar for work in named stages, each of which counts examples. It is a context manager, which closes the bar.

    Parameters
    ----------
    on_terminal : bool
        Whether standard error appears on a terminal; if not, nothing is shown.
    """

    def __init__(self, on_terminal: bool) -> None:
        self._on_terminal = on_terminal
        self._bar: Any = None
        self._stage: str | None = None

    def show(self, stage: str, n_done: int, n_total: int) -> None:
        """Show that `n_done` of the `n_total` examples of a stage are done; `n_total` is 0 if it is unknown."""
        if not self._on_terminal:
            return
        from tqdm import tqdm

        if stage != self._stage:
            self._close()
            self._bar = tqdm(desc=stage, total=n_total or None, unit=" examples", leave=False)
            self._stage = stage
        self._bar.update(n_done - self._bar.n)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.close()
