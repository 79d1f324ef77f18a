"""Write the table of exchanges into ``README.md``, from the rows of ``hpc_dasgd/config/exchange_traits.py``.

    python docs/exchanges.py            # rewrites the table
    python docs/exchanges.py --check    # exit status 1 if the table is out of date

A row is the summary, the traffic and the topologies of one kind of exchange.
"""

import sys
from pathlib import Path

from generated import update

from hpc_dasgd.config.exchange_traits import all_traits

PAGE = Path(__file__).parents[1] / "README.md"


def table() -> str:
    """Return the table as Markdown."""
    lines = [
        "| `exchange.kind` | what a rank does at each step | reads and sends per exchange | `exchange.topology` |",
        "|---|---|---|---|",
    ]
    for traits in all_traits():
        topologies = ", ".join(f"`{name}`" for name in traits.topologies) if traits.chooses_topology else ""
        lines.append(f"| `{traits.kind}` | {traits.summary} | {traits.traffic} | {topologies} |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(update(PAGE, Path(__file__).name, table()))
