"""What rank 0 shows while it trains: a bar on a terminal, plain lines in a file."""

import os
import stat
import sys
from pathlib import Path

BAR_EVERY_S = 0.2
LINE_EVERY_S = 10.0  # the first lines come sooner
_LAUNCHERS = ("mpiexec", "mpirun", "prterun", "orterun")


class Progress:
    """Shows steps, loss, gradients per second and mean staleness; used as a context manager.

    Parameters
    ----------
    n_gradients : int or None
        The budget, where there is one.
    shown : bool
        False on ranks that show nothing.
    begun_s : float
        When this start of the run began, on its clock.
    begun_gradients : int
        Gradients of all ranks before.

    Attributes
    ----------
    shown : bool
        The same.
    """

    def __init__(self, n_gradients: int | None, shown: bool, begun_s: float = 0.0, begun_gradients: int = 0):
        self._n_gradients = n_gradients
        self._bar = None
        self.shown = shown
        self._every_s = 1.0
        self._last = (begun_s, 0, begun_gradients, 0)
        if shown and is_terminal(sys.stderr):
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

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self._bar is not None:
            self._bar.close()

    def due(self, now_s: float) -> bool:
        """Whether `show` would show anything."""
        return self.shown and now_s >= self._next_s

    def show(self, now_s: float, *, steps: int, gradients: int, missed: int, loss: float) -> None:
        """Show how far things are. Behind a `due` that was true.

        Parameters
        ----------
        now_s : float, s
        steps : int
            Of this rank so far.
        gradients : int
            Of all ranks so far.
        missed : int
            Sum of the staleness of all this rank's gradients so far.
        loss : float
            The last.
        """
        self._next_s = now_s + self._every_s
        last_s, last_steps, last_gradients, last_missed = self._last
        self._last = (now_s, steps, gradients, missed)
        staleness = (missed - last_missed) / max(1, steps - last_steps)
        news = f"loss {loss:.4g}  staleness {staleness:.2g}"
        if self._bar is not None:
            self._bar.set_postfix_str(f"step {steps}  {news}", refresh=False)
            self._bar.update(gradients - self._bar.n)
            return
        self._every_s = min(2 * self._every_s, LINE_EVERY_S)
        rate = (gradients - last_gradients) / (now_s - last_s) if now_s > last_s else 0.0
        total = f"/{self._n_gradients}" if self._n_gradients else ""
        line = f"{now_s:8.1f} s  step {steps}  gradients {gradients}{total}  {rate:.0f}/s  {news}"
        print(line, file=sys.stderr, flush=True)


def is_terminal(stream) -> bool:
    """Whether a person watches `stream`: it is a terminal, or a pipe to a launcher whose own output is one.

    ``mpiexec`` reads its ranks through pipes, also where it was typed into a terminal.
    """
    if stream.isatty():
        return True
    try:
        if not stat.S_ISFIFO(os.fstat(stream.fileno()).st_mode):
            return False
        process = os.getppid()
        while process > 1:
            status = Path(f"/proc/{process}/stat").read_text()
            name = status[status.index("(") + 1 : status.rindex(")")]
            if name.startswith(_LAUNCHERS):
                return os.readlink(f"/proc/{process}/fd/{stream.fileno()}").startswith("/dev/pts/")
            process = int(status[status.rindex(")") + 1 :].split()[1])
    except (OSError, ValueError):
        pass
    return False


class Counted:
    """A bar for work that counts up, on a terminal alone; a context manager."""

    def __init__(self):
        self._bar, self._name = None, None

    def show(self, name: str, n_done: int, n_all: int) -> None:
        """Show how far `name` has come; `n_all` is 0 where nobody knows it."""
        if not is_terminal(sys.stderr):
            return
        from tqdm import tqdm

        if name != self._name:
            self.__exit__()
            self._bar, self._name = tqdm(desc=name, total=n_all or None, unit=" examples", leave=False), name
        self._bar.update(n_done - self._bar.n)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self._bar is not None:
            self._bar.close()
