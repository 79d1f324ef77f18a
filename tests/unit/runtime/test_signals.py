"""Signals that request an early end."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from hpc_dasgd.runtime.signals import STOP_SIGNALS, StopSignals


@pytest.mark.parametrize("number", STOP_SIGNALS, ids=lambda number: number.name)
def test_the_first_stop_signal_is_recorded(number):
    with StopSignals() as signals:
        assert signals.received == ""
        os.kill(os.getpid(), number)
        assert signals.received == number.name


def test_previous_handlers_are_restored_at_the_end():
    before = [signal.getsignal(number) for number in STOP_SIGNALS]
    with StopSignals():
        assert all(signal.getsignal(number) not in before for number in STOP_SIGNALS)
    assert [signal.getsignal(number) for number in STOP_SIGNALS] == before


def test_a_signal_that_is_repeated_immediately_counts_once():
    """Under a launcher Ctrl-C arrives from the terminal and from the launcher."""
    with StopSignals() as signals:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        assert signals.received == "SIGINT"


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGUSR1], ids=lambda number: number.name)
def test_a_second_signal_later_ends_the_process(second):
    program = """
import time
from hpc_dasgd.runtime.signals import StopSignals
with StopSignals() as signals:
    print("ready", flush=True)
    while not signals.received:
        time.sleep(0.01)
    print("recorded", flush=True)
    time.sleep(60)
"""
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGUSR1)
        assert process.stdout.readline() == "recorded\n"
        time.sleep(1.1)  # a second signal within a second would count as a duplicate
        process.send_signal(second)
        assert process.wait(timeout=10) == -second


def test_no_handler_is_installed_outside_the_main_thread():
    observed = []

    def run():
        with StopSignals() as signals:
            observed.append((signals.received, signal.getsignal(signal.SIGTERM)))

    before = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert observed == [("", before)]


def test_a_signal_that_was_ignored_stays_ignored():
    """``nohup`` and some launchers start programs with ignored signals."""
    before = signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    try:
        with StopSignals() as signals:
            os.kill(os.getpid(), signal.SIGUSR1)
            assert signals.received == ""
        assert signal.getsignal(signal.SIGUSR1) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGUSR1, before)
