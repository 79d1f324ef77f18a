"""Tests of the text of a status."""

import numpy as np
import pytest

from hpc_dasgd.watch.text import screen_lines, status_line
from tests.unit.watch.runs import read_status, write_run


def test_a_status_line_contains_all_quantities(tmp_path):
    write_run(tmp_path)
    status = read_status(tmp_path)
    text = status_line(status)
    assert "\n" not in text
    slowest = status.rates.argmin()
    for part in (
        f"{status.elapsed_s:.1f} s",
        "gradients 300/1000 (30%)",
        f"{status.rate:.4g}/s",
        f"loss {status.loss:.4g}",
        f"staleness {status.mean_staleness:.4g}",
        "evaluated at 2.0 s: loss 0.25, accuracy 0.875",
        f"slowest rank {slowest} ({status.rates[slowest]:.4g}/s)",
        f"ends in {status.remaining_s:.0f} s",
    ):
        assert part in text


def test_a_large_screen_shows_all_ranks(tmp_path):
    write_run(tmp_path)
    status = read_status(tmp_path)
    lines = screen_lines(status, 200, 24)
    assert lines[0] == f"{tmp_path}: running, {status.elapsed_s:.1f} s, at most 900 s, to a loss of 0.125"
    table = [text.split() for text in lines[4:]]
    assert [(int(row[0]), int(row[1]), row[2]) for row in table] == [
        (rank, status.counts[rank], f"{status.rates[rank]:.4g}/s") for rank in range(3)
    ]
    assert all(row[4:] == ["1", "s", "ago"] for row in table)


@pytest.mark.parametrize("rows", [7, 8, 12, 20])
def test_a_small_screen_shows_the_slowest_and_the_fastest_ranks(tmp_path, rows):
    write_run(tmp_path, n_ranks=30, n_gradients=600)
    status = read_status(tmp_path)
    lines = screen_lines(status, 60, rows)
    assert len(lines) == rows and max(map(len, lines)) <= 60
    table = lines[4:]
    middle = next(k for k, text in enumerate(table) if "..." in text)
    shown = [int(text.split()[0]) for text in table[:middle] + table[middle + 1 :]]
    order = np.argsort(status.rates).tolist()
    assert shown == order[:middle] + order[30 - (len(table) - middle - 1) :]
    assert f"{30 - len(shown)} ranks between" in table[middle]


def test_a_tiny_screen_has_no_more_lines_than_the_terminal(tmp_path):
    write_run(tmp_path)
    assert [len(screen_lines(read_status(tmp_path), 10, rows)) for rows in (1, 3, 5)] == [1, 3, 5]
