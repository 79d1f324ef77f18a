"""Rewrite the generated part of a page, for the scripts beside this file."""

import sys
from pathlib import Path


def update(page: Path, script: str, content: str) -> int:
    """Write `content` into the part of a page that a script makes; with the argument ``--check`` only compare.

    The part is between ``<!-- made by docs/SCRIPT -->`` and ``<!-- end of docs/SCRIPT -->``.

    Returns
    -------
    status : int
        Exit status: 1 if the page was compared and is out of date, otherwise 0.
    """
    begin, end = f"<!-- made by docs/{script} -->", f"<!-- end of docs/{script} -->"
    current = page.read_text(encoding="utf-8")
    before, begin_found, rest = current.partition(begin)
    _, end_found, after = rest.partition(end)
    if not (begin_found and end_found):
        raise SystemExit(f"{page} must contain {begin} and {end}")
    updated = f"{before}{begin}\n\n{content}\n\n{end}{after}"
    if "--check" in sys.argv[1:]:
        return int(updated != current)
    page.write_text(updated, encoding="utf-8")
    return 0
