"""Numbers as text: one way to write a number, a count with its noun, a size, a rate and a list of ranks."""

import math
from collections.abc import Iterable
from numbers import Real

UNKNOWN = "-"
_BYTE_UNITS = ("B", "kB", "MB", "GB", "TB")


def number_text(value: object, digits: int = 4) -> str:
    """Return a number with `digits` significant digits, integers and large numbers in full.

    Parameters
    ----------
    value : float, int, str or None
        None and nan become ``"-"``; what is not a number becomes its ``str``.
    digits : int
        Significant digits of a float below 10,000 in magnitude.

    Examples
    --------
    >>> number_text(0.123456), number_text(12345.6), number_text(7), number_text(None)
    ('0.1235', '12346', '7', '-')
    """
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return UNKNOWN
    if isinstance(value, Real) and not isinstance(value, int):
        return f"{float(value):.{digits}g}" if abs(value) < 10_000 else f"{float(value):.0f}"
    return str(value)


def count_text(count: int, noun: str) -> str:
    """Return a count and its noun, in the plural unless the count is 1.

    Examples
    --------
    >>> count_text(1, "rank"), count_text(3, "rank")
    ('1 rank', '3 ranks')
    """
    return f"{count} {noun}{'' if count == 1 else 's'}"


def bytes_text(n_bytes: float) -> str:
    """Return a number of bytes in units of powers of 1000.

    Examples
    --------
    >>> bytes_text(999), bytes_text(12_300_000)
    ('999 B', '12.3 MB')
    """
    power = min(len(_BYTE_UNITS) - 1, int(math.log10(n_bytes)) // 3) if n_bytes >= 1 else 0
    return f"{n_bytes / 1000**power:.3g} {_BYTE_UNITS[power]}"


def rate_text(count: float, seconds: float) -> str:
    """Return ``count / seconds`` per second, ``"-"`` where no time has passed.

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
    """Return the numbers of some ranks, at most `most` of them, with their noun.

    Examples
    --------
    >>> ranks_text([3]), ranks_text([0, 2]), ranks_text(range(10), most=2)
    ('rank 3', 'ranks 0, 2', 'ranks 0, 1 and 8 more')
    """
    numbers = [str(int(rank)) for rank in ranks]
    listed = ", ".join(numbers[:most]) + (f" and {len(numbers) - most} more" if len(numbers) > most else "")
    return f"rank{'s' if len(numbers) > 1 else ''} {listed}"
