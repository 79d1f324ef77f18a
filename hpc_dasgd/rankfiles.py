"""Reading the files of ranks, while they grow too."""

import math
from pathlib import Path
from typing import NamedTuple

import h5py
import numpy as np

from hpc_dasgd import schema


class RankFile(NamedTuple):
    """A rank's file as it was when the run was opened."""

    path: Path
    versions_every: int = 0
    n_gradients: int = 0
    n_evaluations: int = 0

    @property
    def n_vectors(self) -> int:
        return -(-self.n_gradients // self.versions_every) if self.versions_every else 0


class VersionRows:
    """The logged version vectors of a rank, (n_vectors, n_ranks) uint32, read from its file when sliced."""

    def __init__(self, source: RankFile, n_ranks: int):
        self._path = source.path
        self.shape = (source.n_vectors, n_ranks)

    def __getitem__(self, rows) -> np.ndarray:
        with open_file(self._path) as file:
            return file["gradient/versions"][rows]


def open_file(path: Path) -> h5py.File:
    """Open a file of a run for reading, whether it is whole, growing, or left by a killed process."""
    try:
        return h5py.File(path)
    except OSError:
        return h5py.File(path, swmr=True)


def look_at(path: Path, warnings: list[str]) -> RankFile:
    """See how many whole rows a rank's file holds; its data sets may have been caught growing."""
    try:
        with open_file(path) as file:
            gradient, evaluation = file["gradient"], file["evaluation"]
            every = int(file.attrs["versions_every"])
            # Runs of earlier versions may lack a column.
            lengths = [len(gradient[column.name]) for column in schema.GRADIENT_COLUMNS if column.name in gradient]
            n_complete = min(lengths)
            if every:
                n_complete = min(n_complete, every * len(gradient[schema.VERSIONS.name]))
            known = [evaluation[column.name] for column in schema.EVALUATION_COLUMNS if column.name in evaluation]
            n_evaluations = min(map(len, known))
    except (OSError, KeyError):
        warnings.append(f"{path.name} is missing or unreadable: its rank counts as one without gradients")
        return RankFile(path)
    if n_complete < max(lengths):
        warnings.append(f"{path.name} is cut to {n_complete} gradients: some of its data sets hold no more")
    return RankFile(path, every, n_complete, n_evaluations)


def read_columns(path: Path, group: str, columns: tuple[schema.Column, ...], out: np.ndarray) -> None:
    """Fill `out`, structured, with the first rows of a group; nan where the file lacks a column."""
    if out.size:
        with open_file(path) as file:
            for column in columns:
                out[column.name] = file[group][column.name][: out.size] if column.name in file[group] else math.nan
