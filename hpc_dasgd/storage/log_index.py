"""Index of the logs of all ranks: which rows of which files make up a run. `log_reader` reads the rows.

A *stream* is the sequence of gradients that the ranks with one number computed in all generations; it has the same
number. Its gradients have consecutive versions from 0. A *span* is a range of consecutive versions of a stream in one
file.

Not all rows of the files count: a generation resumes from checkpoints, and what the previous generation logged after
these checkpoints is lost work.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import h5py

from hpc_dasgd.arrays.arithmetic import ceil_div
from hpc_dasgd.storage import layout
from hpc_dasgd.storage.generations import Generation
from hpc_dasgd.storage.hdf5_io import HDF5_ERRORS, open_readable


class SegmentIndex(NamedTuple):
    """Complete rows of one segment of a rank's log when the run was opened.

    Attributes
    ----------
    path : Path
    first : int
        Version of its first gradient.
    versions_every : int
        Version vectors are logged for gradients whose version is a multiple of this; 0 if none is logged.
    n_gradients, n_evaluations : int
        Numbers of gradients and of evaluations.
    n_intervals : int or None
        Changes of the exchange interval; None if the file has no group ``pace``.
    n_columns : int
        Length of its version vectors; 0 if there are none.
    """

    path: Path
    first: int = 0
    versions_every: int = 0
    n_gradients: int = 0
    n_evaluations: int = 0
    n_intervals: int | None = None
    n_columns: int = 0

    @property
    def end(self) -> int:
        """Version after that of its last gradient."""
        return self.first + self.n_gradients

    def vector_rows(self, begin: int, end: int) -> slice:
        """Return the rows of ``gradient/versions`` that belong to versions in ``[begin, end)``."""
        every = self.versions_every
        n_before = ceil_div(self.first, every)
        return slice(ceil_div(begin, every) - n_before, ceil_div(end, every) - n_before)


class Span(NamedTuple):
    """Gradients of a stream with versions ``first <= version < end``, all in one segment.

    Attributes
    ----------
    first, end : int
        Versions of the first gradient and after the last.
    segment : SegmentIndex or None
        None if the gradients count but are in no file.
    generation : int
        Index of the generation in the list of the run's generations.
    """

    first: int
    end: int
    segment: SegmentIndex | None
    generation: int

    @property
    def n_gradients(self) -> int:
        """Number of gradients."""
        return self.end - self.first

    def rows(self, segment: SegmentIndex) -> slice:
        """Return the rows of the group ``gradient`` of its segment."""
        return slice(self.first - segment.first, self.end - segment.first)


class Stream(NamedTuple):
    """Contents of a run's files that belong to one stream.

    Attributes
    ----------
    spans : list of Span
        In the order of versions, without gaps, from 0 to `n_gradients`.
    segments : list of (int, SegmentIndex)
        All readable segments, each after the index of its generation in the list of the run's generations.
    """

    spans: list[Span]
    segments: list[tuple[int, SegmentIndex]]

    @property
    def n_gradients(self) -> int:
        """Number of gradients that count, including those that are in no file."""
        return self.spans[-1].end if self.spans else 0

    @property
    def n_lost(self) -> int:
        """Number of gradients that count but are in no file."""
        return sum(span.n_gradients for span in self.spans if span.segment is None)

    @property
    def versions_every(self) -> int:
        """Version vectors are logged for gradients whose version is a multiple of this; 0 if none is logged."""
        return max((segment.versions_every for _, segment in self.segments), default=0)

    def logged_spans(self) -> Iterator[tuple[Span, SegmentIndex]]:
        """Yield the spans that are in a file, each with its segment."""
        for span in self.spans:
            if span.segment is not None:
                yield span, span.segment


def segment_paths(directory: Path, n_ranks: int) -> list[list[Path]]:
    """List the segments in the directory of a generation by rank; segment 0 is listed even if it does not exist."""
    paths = [[directory / layout.rank_file(rank)] for rank in range(n_ranks)]
    names = (layout.parse_rank_file(path.name) for path in directory.glob(layout.RANK_FILE_PATTERN))
    for rank, segment in sorted(name for name in names if name is not None):
        if segment and rank < n_ranks:
            paths[rank].append(directory / layout.rank_file(rank, segment))
    return paths


def index_streams(
    generations: Sequence[Generation],
    warnings: list[str],
    opener: Callable[[Path], h5py.File] = open_readable,
) -> list[Stream]:
    """Index the log files of a run by stream.

    Parameters
    ----------
    generations : sequence of Generation
        As `generations.read_generations` returns them.
    warnings : list of str
        A line is appended for each file that is missing, unreadable or cut, and each stream with lost rows.
    opener : callable, optional
        Opens a file; a file for which it raises an error of h5py is left out.

    Returns
    -------
    streams : list of Stream
        In the order of their numbers.
    """
    n_streams = generations[-1].versions_before.size
    segments: list[list[tuple[int, SegmentIndex]]] = [[] for _ in range(n_streams)]
    for number, generation in enumerate(generations):
        for rank, paths in enumerate(segment_paths(generation.directory, generation.n_ranks)):
            begun = int(generation.versions_before[rank])
            for path in paths:
                index, warning = _index_segment(path, begun, len(paths) > 1, opener)
                if index is not None:
                    segments[rank].append((number, index))
                if warning:
                    in_folder = generation.directory.match(layout.GENERATION_PATTERN)
                    root = generation.directory.parent if in_folder else generation.directory
                    warnings.append(f"{path.relative_to(root)} {warning}")
    streams = [Stream(_spans(rank, generations, segments[rank]), segments[rank]) for rank in range(n_streams)]
    for rank, stream in enumerate(streams):
        if stream.n_lost:
            warnings.append(f"{stream.n_lost} gradients of rank {rank} are missing from its log")
    return streams


def _index_segment(
    path: Path, begun: int, has_others: bool, opener: Callable[[Path], h5py.File]
) -> tuple[SegmentIndex | None, str]:
    """Return the index of a segment, None if it cannot be read, and a warning, empty if there is none.

    If the file is being written, its data sets may have different lengths; rows that not all of them have are left out.
    """
    try:
        with opener(path) as file:
            gradient, every = file["gradient"], int(file.attrs["versions_every"])
            first = int(file.attrs.get("first_version", begun))
            n_longest, n_gradients = _lengths(file, "gradient", layout.GRADIENT_COLUMNS)
            if every:
                n_columns = gradient[layout.VERSIONS.name].shape[1]
                end = (ceil_div(first, every) + len(gradient[layout.VERSIONS.name])) * every
                n_gradients = min(n_gradients, end - first)
            for group in {"evaluation", "pace"} & set(file):  # short, and needed when the run is completed
                _ = file[f"{group}/t_s"][:]
            index = SegmentIndex(
                path,
                first,
                every,
                n_gradients,
                _lengths(file, "evaluation", layout.EVALUATION_COLUMNS)[1],
                _lengths(file, "pace", layout.INTERVAL_COLUMNS)[1] if "pace" in file else None,
                n_columns if every else 0,
            )
    except HDF5_ERRORS:
        if has_others:
            return None, "is missing or unreadable; the log continues in another segment"
        return None, "is missing or unreadable: its rank counts as one without gradients"
    if n_gradients < n_longest and not has_others:
        return index, f"is cut to {n_gradients} gradients: some of its data sets hold no more"
    return index, ""


def _lengths(file: h5py.File, group: str, columns: tuple[layout.Column, ...]) -> tuple[int, int]:
    """Return the number of rows of the longest column of a group, and the number of complete rows.

    Runs of earlier versions of the package may lack a column.
    """
    lengths = [len(file[group][column.name]) for column in columns if column.name in file[group]]
    name = f"{layout.COMPLETE_ROWS_GROUP}/{group}"
    n_complete = int(file[name][()]) if name in file else -1
    return max(lengths), min(lengths) if n_complete < 0 else min(*lengths, n_complete)


def _spans(rank: int, generations: Sequence[Generation], segments: list[tuple[int, SegmentIndex]]) -> list[Span]:
    """Return the spans of a stream: for each generation, the versions before the first of the next generation.

    A segment is cut where the next segment of the same generation begins.
    """
    spans: list[Span] = []
    done = 0
    for number, child in enumerate([*generations[1:], None]):
        # A stream that the child does not know has no gradients before it: the sum over an empty slice is 0.
        limit = math.inf if child is None else int(child.versions_before[rank : rank + 1].sum())
        own = [segment for generation, segment in segments if generation == number]
        for segment, following in pairwise([*own, None]):
            assert segment is not None
            end = int(min(limit, segment.end, math.inf if following is None else following.first))
            for first, until, source in (
                (done, min(segment.first, end), None),
                (max(done, segment.first), end, segment),
            ):
                if first < until:
                    spans.append(Span(first, until, source, number))
                    done = until
        if done < limit < math.inf:
            spans.append(Span(done, int(limit), None, number))
            done = int(limit)
    return spans
