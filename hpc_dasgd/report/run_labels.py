"""Short labels that tell several runs apart."""

import os
from collections.abc import Sequence
from pathlib import Path

from hpc_dasgd.errors import ConfigError


def run_labels(directories: Sequence[Path]) -> list[str]:
    """Return, for each run directory, the shortest suffix of its absolute path that no other path ends with.

    Raises
    ------
    ConfigError
        If a directory is given twice.

    Examples
    --------
    >>> run_labels([Path("/a/x/run"), Path("/b/x/run"), Path("/a/other")])
    ['a/x/run', 'b/x/run', 'other']
    """
    paths = [Path(os.path.abspath(directory)).parts for directory in directories]
    for directory, path in zip(directories, paths, strict=True):
        if paths.count(path) > 1:
            raise ConfigError(f"a run can be compared only once, got {directory} {paths.count(path)} times")
    return [str(Path(*_shortest_end(path, paths))) for path in paths]


def _shortest_end(path: tuple[str, ...], paths: Sequence[tuple[str, ...]]) -> tuple[str, ...]:
    ends = (path[-length:] for length in range(1, len(path)))
    return next((end for end in ends if sum(other[-len(end) :] == end for other in paths) == 1), path)
