"""Tables of text for the terminal, drawn by rich, which is imported when a table is drawn."""

from collections.abc import Iterable, Sequence
from io import StringIO
from typing import Literal, NamedTuple

WIDEST = 1000
"""Longest line by default, in characters."""


class Column(NamedTuple):
    """A column of a table.

    Attributes
    ----------
    heading : str
    numeric : bool
        Whether the cells are numbers, which are aligned on the right; other cells are aligned on the left.
    """

    heading: str
    numeric: bool = True


def table_lines(columns: Sequence[Column], rows: Iterable[Sequence[str]], width: int = WIDEST) -> list[str]:
    """Return a table as lines of text, the headings first.

    Parameters
    ----------
    columns : sequence of Column
        The columns, from left to right.
    rows : iterable of sequence of str
        One cell for each column.
    width : int
        Longest line in characters; longer lines are cut.

    Returns
    -------
    lines : list of str
        Lines without colours and without blanks at their ends.

    Examples
    --------
    >>> table_lines([Column("rank"), Column("host", numeric=False)], [["0", "a"], ["11", "b"]])
    ['rank  host', '   0  a', '  11  b']
    """
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_edge=False)
    for column in columns:
        justify: Literal["left", "right"] = "right" if column.numeric else "left"
        table.add_column(Text(column.heading), justify=justify, no_wrap=True, overflow="crop")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    output = StringIO()
    Console(file=output, width=width, color_system=None, legacy_windows=False).print(table, soft_wrap=False)
    return [line.rstrip() for line in output.getvalue().splitlines()]
