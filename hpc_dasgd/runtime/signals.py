"""Signals that ask for an early end: SIGTERM, SIGUSR1 (SLURM's ``--signal``) and SIGINT (Ctrl-C)."""

import os
import signal
import threading
import time

ASKING = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
_ECHO_S = 1.0  # Ctrl-C reaches a rank twice: from the terminal, and from its launcher


def ignore() -> None:
    """Let no signal change the exit status any more: all is written.

    ``srun --kill-on-bad-exit`` ends the other ranks when the first one exits with 75, which they all are about to do.
    """
    for number in ASKING:
        signal.signal(number, signal.SIG_IGN)


class Signals:
    """While the context lasts, the first signal is noted, and a later one does what it did before.

    One that was ignored stays ignored.

    Python hands signals to the main thread: in any other this does nothing.

    Attributes
    ----------
    received : str
        Name of the first signal; empty as long as there was none.
    """

    def __init__(self):
        self.received = ""
        self._at_s = 0.0
        self._before = {}

    def __enter__(self):
        if threading.current_thread() is threading.main_thread():
            heard = (number for number in ASKING if signal.getsignal(number) != signal.SIG_IGN)
            self._before = {number: signal.signal(number, self._note) for number in heard}
        return self

    def __exit__(self, *_) -> None:
        self._restore()

    def _note(self, number: int, _) -> None:
        now_s = time.monotonic()
        if not self.received:
            self.received, self._at_s = signal.Signals(number).name, now_s
        elif now_s - self._at_s > _ECHO_S:
            self._restore()
            os.kill(os.getpid(), number)

    def _restore(self) -> None:
        while self._before:
            # A handler that was not Python's own is not known, and cannot be put back.
            number, handler = self._before.popitem()
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
