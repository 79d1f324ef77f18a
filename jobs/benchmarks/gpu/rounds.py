"""Alternatives timed in turns, and what comes of them."""

import argparse
import json
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

WARM_UP_STEPS = 3


def arguments(description: str) -> argparse.ArgumentParser:
    """What every part takes."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path)
    parser.add_argument("--device", choices=("cpu", "gpu"), default="gpu")
    parser.add_argument("--small", action="store_true")
    return parser


def alternate(
    steps: Mapping[str, Callable[[], object]], synchronize: Callable[[], object], round_s: float, n_rounds: int
) -> dict[str, list[float]]:
    """Time steps in turns, so that a slow moment of the machine hits all alike.

    Parameters
    ----------
    steps : mapping of str to callable
    synchronize : callable
        Waits until all that the steps began is done.
    round_s : float
        How long one of them goes on at a time, about.
    n_rounds : int
        After a first one, which warms up.

    Returns
    -------
    samples : dict of str to list of float
        Seconds of one step, by round.
    """
    counts = {name: max(1, round(round_s / _timed(step, WARM_UP_STEPS, synchronize))) for name, step in steps.items()}
    samples = {name: [] for name in steps}
    for _ in range(1 + n_rounds):
        for name, step in steps.items():
            samples[name].append(_timed(step, counts[name], synchronize))
    return {name: found[1:] for name, found in samples.items()}


def _timed(step, n_steps: int, synchronize) -> float:
    synchronize()
    begun_s = time.perf_counter()
    for _ in range(n_steps):
        step()
    synchronize()
    return (time.perf_counter() - begun_s) / n_steps


def relative_error(found: np.ndarray, expected: np.ndarray) -> float:
    """Norm of the difference over the norm of what is expected; nan or infinity where `found` holds such."""
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def hidden_share(none_s: float, read_s: float, exchange_s: float) -> float:
    """Share of an exchange that goes on beside the computing.

    Parameters
    ----------
    none_s, read_s : float
        Time of a step without and with the exchange.
    exchange_s : float
        Time of the exchange alone.
    """
    return 1 - (read_s - none_s) / exchange_s


def median(samples) -> float:
    return statistics.median(samples)


def write(output: Path, rows: list[dict]) -> None:
    """Leave the outcome of a part, so far, for the program that started it and may end it at any moment."""
    beside = output.with_suffix(".new")
    beside.write_text(json.dumps(rows, indent=1) + "\n")
    beside.replace(output)
