"""Write the table of exchanges in README from ``hpc_dasgd/config/exchange_traits.py``.

python docs/exchanges.py            # rewrites the table
python docs/exchanges.py --check    # exit status 1 if the table is out of date
"""

import sys
from pathlib import Path

from hpc_dasgd.config.exchange_traits import all_traits

PAGE = Path(__file__).parents[1] / "README.md"
BEGIN, END = "<!-- exchanges: made by docs/exchanges.py -->", "<!-- end of exchanges -->"


def main() -> int:
    """Rewrite or check the table; returns the exit status."""
    page = PAGE.read_text(encoding="utf-8")
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    written = f"{before}{BEGIN}\n\n{table()}\n\n{END}{after}"
    if "--check" in sys.argv[1:]:
        return int(written != page)
    PAGE.write_text(written, encoding="utf-8")
    return 0


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
    sys.exit(main())
