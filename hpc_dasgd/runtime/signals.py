"""Signals that request an early end: SIGTERM, SIGUSR1 (SLURM's ``--signal``) and SIGINT (Ctrl-C)."""

from __future__ import annotations

import os
import signal
import threading
import time
from types import FrameType
from typing import Any

STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
_DUPLICATE_S = 1.0  # Ctrl-C reaches a rank twice: from the terminal and from its launcher


def ignore_stop_signals() -> None:
    """Ignore all stop signals from now on, so that they cannot change the exit status.

    For ranks that have written all results: ``srun --kill-on-bad-exit`` sends SIGTERM to the other ranks when the
    first one exits with 75, which all of them are about to do.
    """
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)


class StopSignals:
    """Context manager that records the first stop signal instead of letting it end the process.

    A second stop signal, more than a second after the first, restores the previous handlers and is sent again, which
    usually ends the process. A signal that was ignored before stays ignored. Python delivers signals to the main
    thread: in any other thread the context manager does nothing.

    Attributes
    ----------
    received : str
        Name of the first stop signal, such as ``"SIGTERM"``; empty as long as there was none.

    Examples
    --------
    >>> with StopSignals() as signals:
    ...     os.kill(os.getpid(), signal.SIGUSR1)
    ...     signals.received
    'SIGUSR1'
    """

    def __init__(self) -> None:
        self.received = ""
        self._received_at_s = 0.0
        self._previous_handlers: dict[signal.Signals, Any] = {}

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            for number in STOP_SIGNALS:
                if signal.getsignal(number) != signal.SIG_IGN:
                    self._previous_handlers[number] = signal.signal(number, self._record)
        return self

    def __exit__(self, *_: object) -> None:
        self._restore()

    def _record(self, number: int, _: FrameType | None) -> None:
        now_s = time.monotonic()
        if not self.received:
            self.received, self._received_at_s = signal.Signals(number).name, now_s
        elif now_s - self._received_at_s > _DUPLICATE_S:
            self._restore()
            os.kill(os.getpid(), number)

    def _restore(self) -> None:
        while self._previous_handlers:
            number, handler = self._previous_handlers.popitem()
            # A handler that was not installed by Python is None, and cannot be restored.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
