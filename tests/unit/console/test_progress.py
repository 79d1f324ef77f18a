"""Progress of work: a bar on a terminal, lines in a file, and nothing on ranks that show nothing."""

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios

import pytest

from hpc_dasgd.console.progress import Progress, StageBar

SHOWS = """
from hpc_dasgd.console.progress import Progress
with Progress({n_gradients}, shown=True, on_terminal={on_terminal}) as progress:
    for k in range(1, 4):
        progress.show(k * 10.0, steps=25 * k, gradients=100 * k * k, missed=50 * k * k, loss=2 / k)
"""


def read_all(descriptor):
    """Return the output on a pseudo-terminal until its last writer closes it."""
    content = b""
    while True:
        try:
            piece = os.read(descriptor, 65536)
        except OSError:  # on Linux, no writer is left
            return content.decode()
        if not piece:
            return content.decode()
        content += piece


def on_terminal(script):
    """Return the standard error of `script` on a pseudo-terminal of 120 columns."""
    leader, follower = pty.openpty()
    fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 120, 0, 0))
    with subprocess.Popen([sys.executable, "-c", script], stderr=follower) as process:
        os.close(follower)
        shown = read_all(leader)
    os.close(leader)
    assert process.returncode == 0, shown
    return shown


def in_file(script, path):
    """Return the standard error of `script`, written to the file `path`."""
    with open(path, "w") as stream:
        subprocess.run([sys.executable, "-c", script], stderr=stream, check=True, timeout=60)
    return path.read_text()


def test_lines_are_printed_into_a_file(tmp_path):
    lines = in_file(SHOWS.format(n_gradients=900, on_terminal=False), tmp_path / "log").splitlines()
    assert lines == [
        "    10.0 s  step 25  gradients 100/900  10/s  loss 2  staleness 2",
        "    20.0 s  step 50  gradients 400/900  30/s  loss 1  staleness 6",
        "    30.0 s  step 75  gradients 900/900  50/s  loss 0.6667  staleness 10",
    ]


def test_lines_without_a_budget_of_gradients_have_no_total(tmp_path):
    shown = in_file(SHOWS.format(n_gradients=None, on_terminal=False), tmp_path / "log")
    assert "gradients 100  10/s" in shown


def test_a_bar_is_drawn_on_a_terminal():
    shown = on_terminal(SHOWS.format(n_gradients=900, on_terminal=True))
    assert "\r" in shown
    assert "100%" in shown and "900/900" in shown
    assert "step 75  loss 0.6667  staleness 10" in shown


def test_a_bar_without_a_budget_of_gradients_has_no_total():
    shown = on_terminal(SHOWS.format(n_gradients=None, on_terminal=True))
    assert re.search(r"\r\s*900 gradients", shown)


def test_no_bar_is_drawn_on_a_rank_that_shows_nothing():
    script = "from hpc_dasgd.console.progress import Progress\nwith Progress(9, shown=False, on_terminal=True): pass"
    assert on_terminal(script) == ""


def test_the_time_between_lines_doubles_up_to_ten_seconds(capsys):
    with Progress(None, shown=True) as progress:
        moments_s = [second / 2 for second in range(121) if progress_shows(progress, second / 2)]
    assert moments_s == [1, 2, 4, 8, 16, 26, 36, 46, 56]
    assert capsys.readouterr().err.count("\n") == 9


def progress_shows(progress, now_s):
    due = progress.due(now_s)
    if due:
        progress.show(now_s, steps=1, gradients=4, missed=0, loss=1.0)
    return due


def test_the_bar_is_updated_more_often_than_lines_are_printed():
    shown = on_terminal(
        "from hpc_dasgd.console.progress import LINE_EVERY_S, Progress\n"
        "with Progress(9, shown=True, on_terminal=True) as p:\n"
        "    p.show(1.0, steps=1, gradients=1, missed=0, loss=1.0)\n"
        "    assert not p.due(1.1) and p.due(1.0 + LINE_EVERY_S / 10)\n"
    )
    assert "1.00/9.00" in shown


def test_show_is_never_due_on_a_rank_that_shows_nothing(capsys):
    with Progress(100, shown=False) as progress:
        assert not any(progress.due(now_s) for now_s in (0.0, 5.0, 1e9))
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("loss", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_is_printed(capsys, loss):
    Progress(None, shown=True).show(1.0, steps=1, gradients=1, missed=0, loss=loss)
    assert f"loss {loss}" in capsys.readouterr().err


def test_a_bar_is_drawn_for_each_stage_of_counted_work():
    shown = on_terminal(
        "from hpc_dasgd.console.progress import StageBar\n"
        "with StageBar(on_terminal=True) as bar:\n"
        "    for n_done in range(1, 4):\n"
        "        bar.show('train', n_done, 3)\n"
        "    bar.show('test', 7, 0)\n"
    )
    assert "train" in shown and "0/3" in shown
    assert "test: 0 examples" in shown


def test_no_stage_is_shown_without_a_terminal(capsys):
    with StageBar(on_terminal=False) as bar:
        bar.show("train", 1, 3)
    assert capsys.readouterr() == ("", "")
