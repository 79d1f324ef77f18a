"""Checks of single arguments, with messages that name the argument, the rule and the value."""

from math import isfinite
from numbers import Integral, Real


def real(name, value, rule="finite", allowed=isfinite):
    """Return `value` as a float.

    Parameters
    ----------
    name : str
        The argument, for the message.
    value : object
        What was given for it.
    rule : str
        What is allowed, in words that follow "must be".
    allowed : callable
        The same rule: number -> bool.

    Raises
    ------
    TypeError
        If `value` is not a real number; a bool is not one.
    ValueError
        If it is not allowed.
    """
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"`{name}` must be a number, got {value!r}")
    if not allowed(value):
        raise ValueError(f"`{name}` must be {rule}, got {value!r}")
    return float(value)


def positive_real(name, value):
    """Return `value` as a float; see `real`."""
    return real(name, value, "positive and finite", lambda number: 0 < number < float("inf"))


def non_negative_real(name, value):
    """Return `value` as a float; see `real`."""
    return real(name, value, "at least 0 and finite", lambda number: 0 <= number < float("inf"))


def integer(name, value, at_least, below=None):
    """Return `value` as an int within ``[at_least, below)``.

    Raises
    ------
    TypeError
        If `value` is not an integer; a bool is not one.
    ValueError
        If it is out of range.
    """
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"`{name}` must be an integer, got {value!r}")
    if value < at_least:
        raise ValueError(f"`{name}` must be at least {at_least}, got {value!r}")
    if below is not None and value >= below:
        raise ValueError(f"`{name}` must be below {below}, got {value!r}")
    return int(value)
