"""Show the status of a run repeatedly: line by line in a file, in place on a terminal. No MPI.

Example::

    watch("runs/digits-20250101-120000", every_s=2.0, patience_s=60.0)
"""

import os
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Protocol, TextIO

from hpc_dasgd.errors import ConfigError
from hpc_dasgd.storage import layout
from hpc_dasgd.storage.hdf5_io import error_reason
from hpc_dasgd.watch.run_status import RunStatus
from hpc_dasgd.watch.text import last_line, screen_lines, status_line
from hpc_dasgd.watch.watcher import Watcher

if TYPE_CHECKING:
    from rich.live import Live

_MARGIN = 2  # number of lines of the terminal that remain empty


class Display(AbstractContextManager["Display"], Protocol):
    """Interface of the output of `watch`: a context manager that shows statuses and messages."""

    def show(self, status: RunStatus) -> None:
        """Show a status."""

    def message(self, text: str) -> None:
        """Show one line of text permanently."""


class LineDisplay(Display):
    """Display that writes one line per status.

    Parameters
    ----------
    stream : text stream
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __exit__(self, *_: object) -> None:
        pass

    def show(self, status: RunStatus) -> None:
        """Write a status as one line."""
        self.message(status_line(status))

    def message(self, text: str) -> None:
        """Write one line."""
        print(text, file=self._stream, flush=True)


class TerminalDisplay(Display):
    """Display that redraws the status at the same place of a terminal, with rich.

    Parameters
    ----------
    stream : text stream
        A terminal that can move its cursor.
    """

    def __init__(self, stream: TextIO) -> None:
        from rich.console import Console

        self._console = Console(file=stream, highlight=False, markup=False, emoji=False)
        self._live: Live | None = None

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def show(self, status: RunStatus) -> None:
        """Replace the status on the screen."""
        from rich.live import Live
        from rich.text import Text

        if self._live is None:
            self._live = Live(console=self._console, auto_refresh=False, redirect_stdout=False, redirect_stderr=False)
            self._live.start()
        lines = screen_lines(status, self._console.width - 1, self._console.height - _MARGIN)
        self._live.update(Text("\n".join(lines), no_wrap=True, overflow="crop"), refresh=True)

    def message(self, text: str) -> None:
        """Write one line above the status."""
        self._console.print(text, soft_wrap=True)


def make_display(stream: TextIO) -> Display:
    """Return a display that suits a stream: in place on a terminal that can move its cursor, otherwise line by line."""
    if stream.isatty() and os.environ.get("TERM") not in ("dumb", "unknown"):
        return TerminalDisplay(stream)
    return LineDisplay(stream)


def watch(
    path: str | os.PathLike[str],
    every_s: float,
    patience_s: float,
    stream: TextIO | None = None,
    clock: Callable[[], float] = time.time,
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Show the status of a run until it is complete or stopped, or no file has changed for `patience_s`.

    Parameters
    ----------
    path : path
        The run directory, or its ``run.h5``. If it does not exist, wait at most `patience_s` for it.
    every_s : float, s
        Time between two readings of the files.
    patience_s : float, s
        Time without changes after which the run is assumed to be dead.
    stream : text stream, optional
        Where to write; standard output by default.
    clock, sleep : callable
        Used in place of ``time.time`` and ``time.sleep``.

    Raises
    ------
    ConfigError
        If there is no run, or it cannot be watched.
    """
    stream = sys.stdout if stream is None else stream
    status = None
    with Watcher(path) as watcher, make_display(stream) as display:
        read_s, is_waiting = clock(), False
        while True:
            now_s = clock()
            try:
                status = watcher.read_status(now_s)
            except (OSError, KeyError) as error:
                if not watcher.may_appear or now_s - read_s >= patience_s:
                    rule = f"must be a run directory or its {layout.RUN_FILE}"
                    raise ConfigError(f"{path} {rule}: {error_reason(error)}") from None
                if not is_waiting:
                    display.message(f"waiting for {path}")
                is_waiting = True
            else:
                read_s = now_s
                display.show(status)
                if status.ended or status.idle_s >= patience_s:
                    break
            sleep(every_s)
    print(last_line(status), file=stream, flush=True)
