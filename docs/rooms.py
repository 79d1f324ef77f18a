"""Draw the rooms of the package and the imports between them into ``docs/architecture.md``, as a Mermaid graph.

    python docs/rooms.py            # rewrites the picture
    python docs/rooms.py --check    # exit status 1 if the picture is out of date

The imports are read from the sources by grimp, which import-linter brings along. An arrow that follows from others
(a room imports another by way of a third) is left out, so that the picture can be read.
"""

import sys
import tomllib
from pathlib import Path

import grimp
from generated import update

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "architecture.md"


def picture() -> str:
    """Return the rooms, floor by floor, and the arrows between them as Mermaid text."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"]
    layers = settings["contracts"][0]["layers"]
    floors = [[room.strip() for room in layer.split("|")] for layer in layers]
    lines = ["flowchart TD"]
    for number, rooms in enumerate(floors):
        lines.append(f"    subgraph floor{len(floors) - number} [ ]")
        lines += [f"        {room}" for room in rooms]
        lines.append("    end")
    rooms = {room for floor in floors for room in floor}
    lines += [f"    {importer} --> {imported}" for importer, imported in arrows(rooms)]
    return "\n".join(lines)


def arrows(rooms: set[str]) -> list[tuple[str, str]]:
    """Return the imports between rooms, without those that follow from others."""
    graph = grimp.build_graph("hpc_dasgd", cache_dir=None)
    direct = {room: set() for room in rooms}
    for module in graph.modules:
        for imported in graph.find_modules_directly_imported_by(module):
            pair = [name.split(".")[1] for name in (module, imported) if "." in name]
            if len(pair) == 2 and pair[0] != pair[1] and set(pair) <= rooms:
                direct[pair[0]].add(pair[1])
    reached = {room: _reached(room, direct) for room in rooms}
    return sorted(
        (room, other)
        for room, others in direct.items()
        for other in others
        if not any(other in reached[between] for between in others - {other})
    )


def _reached(room: str, direct: dict[str, set[str]]) -> set[str]:
    found: set[str] = set()
    ahead = [room]
    while ahead:
        new = direct[ahead.pop()] - found
        found |= new
        ahead.extend(new)
    return found


if __name__ == "__main__":
    sys.exit(update(PAGE, Path(__file__).name, f"```mermaid\n{picture()}\n```"))
