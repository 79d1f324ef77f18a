"""Numbers as text: one way to write a number, a count with its noun, a size, a rate and a list of ranks."""

import math
from collections.abc import Iterable
from numbers import Integral, Real

UNKNOWN = "-"
"""Text of a number that is not known."""

_BYTE_UNITS = ("B", "kB", "MB", "GB", "TB")


def number_text(value: object, digits: int = 4) -> str:
    """Return a float rounded to some significant digits; integers and large numbers in full.

    Parameters
    ----------
    value : float, int, str or None
        None and nan become ``"-"``, and objects that are not numbers their ``str``.
    digits : int
        Number of significant digits. Floats of at least 10,000 in magnitude, or with more than `digits` digits
        before the decimal point, are rounded to an integer.

    Examples
    --------
    >>> number_text(0.123456), number_text(12345.6), number_text(7), number_text(None)
    ('0.1235', '12346', '7', '-')
    """
    if value is None:
        return UNKNOWN
    if isinstance(value, Integral) or not isinstance(value, Real):
        return str(value)
    number = float(value)
    if math.isnan(number):
        return UNKNOWN
    # The format "g" would write numbers that it rounds to 10**digits with an exponent.
    return f"{number:.{digits}g}" if abs(number) < min(10_000, 10**digits - 0.5) else f"{number:.0f}"


def count_text(count: int, noun: str) -> str:
    """Return a count and its noun, in the plural unless the count is 1.

    Examples
    --------
    >>> count_text(1, "rank"), count_text(3, "rank")
    ('1 rank', '3 ranks')
    """
    return f"{count} {noun}{'' if count == 1 else 's'}"


def bytes_text(n_bytes: float) -> str:
    """Return a number of bytes with three significant digits, in units of powers of 1000 up to TB.

    Examples
    --------
    >>> bytes_text(999), bytes_text(12_300_000)
    ('999 B', '12.3 MB')
    """
    value, power = float(n_bytes), 0
    while value >= 999.5 and power < len(_BYTE_UNITS) - 1:  # smaller values are not rounded to 1000
        value, power = value / 1000, power + 1
    return f"{value:.3g} {_BYTE_UNITS[power]}" if value < 999.5 else f"{value:.0f} {_BYTE_UNITS[power]}"


def rate_text(count: float, seconds: float) -> str:
    """Return ``count / seconds`` as a rate, or ``"-"`` if `seconds` is not positive.

    Examples
    --------
    >>> rate_text(10, 4.0), rate_text(123456, 10.0), rate_text(5, 0.0)
    ('2.5/s', '12346/s', '-')
    """
    if seconds <= 0:
        return UNKNOWN
    rate = count / seconds
    return f"{rate:.4g}/s" if rate < 1000 else f"{rate:.0f}/s"


def ranks_text(ranks: Iterable[int], most: int = 8) -> str:
    """Return a list of ranks as text; of more than `most` ranks, the first `most` and the number of the others.

    Examples
    --------
    >>> ranks_text([3]), ranks_text([0, 2]), ranks_text(range(10), most=2)
    ('rank 3', 'ranks 0, 2', 'ranks 0, 1 and 8 more')
    """
    numbers = [str(int(rank)) for rank in ranks]
    listed = ", ".join(numbers[:most]) + (f" and {len(numbers) - most} more" if len(numbers) > most else "")
    return f"rank{'s' if len(numbers) > 1 else ''} {listed}"
