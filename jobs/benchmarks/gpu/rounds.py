"""Functions shared by the parts of the GPU benchmark: arguments, timing in turns, and the file of results."""

import argparse
import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from jobs.benchmarks.common import argument_parser, sample_in_turns

WARM_UP_STEPS = 3


def arguments(description: str) -> argparse.ArgumentParser:
    """Return a parser with the arguments of every part."""
    parser = argument_parser(description)
    parser.add_argument("--device", choices=("cpu", "gpu"), default="gpu")
    parser.add_argument("--small", action="store_true")
    return parser


def time_in_turns(
    steps: Mapping[str, Callable[[], object]], synchronize: Callable[[], object], round_s: float, n_rounds: int
) -> dict[str, list[float]]:
    """Time steps in turns, so that a temporary slowdown of the machine affects all alike.

    Parameters
    ----------
    steps : mapping of str to callable
        Functions to time, by name.
    synchronize : callable
        Waits until all work that the steps started is done.
    round_s : float, s
        Approximate time for which one step is repeated in one round.
    n_rounds : int
        Number of rounds, after a first one for warming up.

    Returns
    -------
    samples : dict of str to list of float
        Seconds of one step, by round.
    """

    def timer(step):
        n_steps = max(1, round(round_s / _time(step, WARM_UP_STEPS, synchronize)))
        return lambda: _time(step, n_steps, synchronize)

    return sample_in_turns({name: timer(step) for name, step in steps.items()}, n_rounds, n_warm_up=1)


def _time(step, n_steps: int, synchronize) -> float:
    """Return the mean seconds of one step."""
    synchronize()
    begun_s = time.perf_counter()
    for _ in range(n_steps):
        step()
    synchronize()
    return (time.perf_counter() - begun_s) / n_steps


def relative_error(found: np.ndarray, expected: np.ndarray) -> float:
    """Return the norm of the difference divided by the norm of `expected`; not finite if `found` is not."""
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def hidden_share(none_s: float, read_s: float, exchange_s: float) -> float:
    """Return the share of an exchange that overlaps with computation.

    Parameters
    ----------
    none_s, read_s : float, s
        Time of a step without and with the exchange.
    exchange_s : float, s
        Time of the exchange alone.
    """
    return 1 - (read_s - none_s) / exchange_s


def write_rows(output: Path, rows: list[dict]) -> None:
    """Replace the file of rows atomically: the program that started this part may end it at any moment."""
    temporary = output.with_suffix(".new")
    temporary.write_text(json.dumps(rows, indent=1) + "\n")
    temporary.replace(output)
