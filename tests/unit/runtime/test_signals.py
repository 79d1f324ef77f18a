"""Signals that ask for an early end."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from hpc_dasgd.runtime.signals import ASKING, Signals


@pytest.mark.parametrize("number", ASKING, ids=lambda number: number.name)
def test_the_first_signal_is_noted(number):
    with Signals() as signals:
        assert signals.received == ""
        os.kill(os.getpid(), number)
        assert signals.received == number.name


def test_what_was_there_before_is_put_back():
    before = [signal.getsignal(number) for number in ASKING]
    with Signals():
        assert all(signal.getsignal(number) not in before for number in ASKING)
    assert [signal.getsignal(number) for number in ASKING] == before


def test_the_same_signal_twice_at_once_counts_once():
    """As Ctrl-C comes under a launcher: from the terminal, and from the launcher."""
    with Signals() as signals:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        assert signals.received == "SIGINT"


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGUSR1], ids=lambda number: number.name)
def test_a_second_signal_ends_the_process_at_once(second):
    program = """
import time
from hpc_dasgd.runtime.signals import Signals
with Signals() as signals:
    print("ready", flush=True)
    while not signals.received:
        time.sleep(0.01)
    print("noted", flush=True)
    time.sleep(60)
"""
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGUSR1)
        assert process.stdout.readline() == "noted\n"
        time.sleep(1.1)  # a second one that follows at once is an echo
        process.send_signal(second)
        assert process.wait(timeout=10) == -second


def test_in_another_thread_nothing_is_changed():
    found = []

    def run():
        with Signals() as signals:
            found.append((signals.received, signal.getsignal(signal.SIGTERM)))

    before = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert found == [("", before)]


def test_what_was_ignored_stays_ignored():
    """As ``nohup`` and launchers have it."""
    before = signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    try:
        with Signals() as signals:
            os.kill(os.getpid(), signal.SIGUSR1)
            assert signals.received == ""
        assert signal.getsignal(signal.SIGUSR1) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGUSR1, before)
