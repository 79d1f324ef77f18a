"""Converters of option values: each converts a text, or raises an error that names the rule and the value."""

import argparse
import math


def share(text: str) -> float:
    """Return a number in [0, 1)."""
    try:
        share = float(text)
    except ValueError:
        share = math.nan
    if not 0 <= share < 1:
        raise argparse.ArgumentTypeError(f"must be a number in [0, 1), got {text!r}")
    return share


def constant(text: str) -> tuple[str, float]:
    """Return name and value of ``"NAME=VALUE"``, where NAME is a constant of the convergence bounds."""
    from hpc_dasgd.theory.bounds import Constants

    name, _, value = text.partition("=")
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if name not in Constants._fields or not 0 <= number < math.inf:
        raise argparse.ArgumentTypeError(f"must be L, sigma, Q or F_0 and a number of at least 0, got {text!r}")
    return name, number


def rank_and_version(text: str) -> tuple[int, int]:
    """Return rank and version of ``"RANK:VERSION"``."""
    rank, _, version = text.partition(":")
    try:
        return int(rank), int(version)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be RANK:VERSION, got {text!r}") from None


def non_negative_int(text: str) -> int:
    """Return an integer of at least 0."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"must be an integer of at least 0, got {text!r}")
    return int(text)


def positive_int(text: str) -> int:
    """Return a positive integer."""
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value <= 0:
        raise argparse.ArgumentTypeError(f"must be a positive integer, got {text!r}")
    return value


def positive_float(text: str) -> float:
    """Return a positive, finite number."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"must be a positive number, got {text!r}")
    return value
