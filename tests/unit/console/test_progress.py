"""Progress: a bar where a person watches, lines where a file is written, silence elsewhere."""

import fcntl
import io
import os
import pty
import re
import struct
import subprocess
import sys
import termios

import pytest

from hpc_dasgd.console.progress import Progress, is_terminal

SHOWS = """
from hpc_dasgd.console.progress import Progress
with Progress({n_gradients}, shown={shown}) as progress:
    for k in range(1, 4):
        progress.show(k * 10.0, steps=25 * k, gradients=100 * k * k, missed=50 * k * k, loss=2 / k)
"""


def read_all(descriptor):
    """What a pseudo-terminal shows until its last writer is gone."""
    content = b""
    while True:
        try:
            piece = os.read(descriptor, 65536)
        except OSError:  # how Linux says that no writer is left
            return content.decode()
        if not piece:
            return content.decode()
        content += piece


def on_terminal(script):
    """Standard error of `script` when it is a terminal of 120 columns."""
    leader, follower = pty.openpty()
    fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 120, 0, 0))
    with subprocess.Popen([sys.executable, "-c", script], stderr=follower) as process:
        os.close(follower)
        shown = read_all(leader)
    os.close(leader)
    assert process.returncode == 0, shown
    return shown


def in_file(script, path):
    with open(path, "w") as stream:
        subprocess.run([sys.executable, "-c", script], stderr=stream, check=True, timeout=60)
    return path.read_text()


def test_a_file_gets_plain_lines(tmp_path):
    lines = in_file(SHOWS.format(n_gradients=900, shown=True), tmp_path / "log").splitlines()
    assert lines == [
        "    10.0 s  step 25  gradients 100/900  10/s  loss 2  staleness 2",
        "    20.0 s  step 50  gradients 400/900  30/s  loss 1  staleness 6",
        "    30.0 s  step 75  gradients 900/900  50/s  loss 0.6667  staleness 10",
    ]


def test_a_run_without_a_number_of_gradients_has_no_total(tmp_path):
    shown = in_file(SHOWS.format(n_gradients=None, shown=True), tmp_path / "log")
    assert "gradients 100  10/s" in shown


def test_a_terminal_gets_a_bar():
    shown = on_terminal(SHOWS.format(n_gradients=900, shown=True))
    assert "\r" in shown
    assert "100%" in shown and "900/900" in shown
    assert "step 75  loss 0.6667  staleness 10" in shown


def test_a_terminal_gets_a_bar_without_a_total():
    shown = on_terminal(SHOWS.format(n_gradients=None, shown=True))
    assert re.search(r"\r\s*900 gradients", shown)


def test_a_rank_that_shows_nothing_is_silent():
    assert on_terminal("from hpc_dasgd.console.progress import Progress\nwith Progress(9, shown=False): pass") == ""


def test_lines_in_a_file_grow_rarer(capsys):
    with Progress(None, shown=True) as progress:
        moments_s = [second / 2 for second in range(121) if progress_shows(progress, second / 2)]
    assert moments_s == [1, 2, 4, 8, 16, 26, 36, 46, 56]
    assert capsys.readouterr().err.count("\n") == 9


def progress_shows(progress, now_s):
    due = progress.due(now_s)
    if due:
        progress.show(now_s, steps=1, gradients=4, missed=0, loss=1.0)
    return due


def test_a_terminal_is_due_more_often():
    shown = on_terminal(
        "from hpc_dasgd.console.progress import LINE_EVERY_S, Progress\n"
        "with Progress(9, shown=True) as p:\n"
        "    p.show(1.0, steps=1, gradients=1, missed=0, loss=1.0)\n"
        "    assert not p.due(1.1) and p.due(1.0 + LINE_EVERY_S / 10)\n"
    )
    assert "1.00/9.00" in shown


def test_nothing_is_ever_due_where_nothing_is_shown(capsys):
    with Progress(100, shown=False) as progress:
        assert not any(progress.due(now_s) for now_s in (0.0, 5.0, 1e9))
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("loss", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_is_shown(capsys, loss):
    Progress(None, shown=True).show(1.0, steps=1, gradients=1, missed=0, loss=loss)
    assert f"loss {loss}" in capsys.readouterr().err


def launched_from_a_terminal(tmp_path, redirection):
    """Whether a process that a launcher started from a terminal takes its standard error for watched.

    The launcher is a shell by the name of mpiexec.
    """
    launcher, answer, rank = (tmp_path / name for name in ("mpiexec", "answer", "rank.py"))
    os.symlink("/bin/sh", launcher)
    rank.write_text(
        "import pathlib, sys\n"
        "from hpc_dasgd.console.progress import is_terminal\n"
        f"pathlib.Path({str(answer)!r}).write_text(str(is_terminal(sys.stderr)))\n"
    )
    # Some shells redirect themselves while they wait, hence one between; the colons keep both from
    # replacing themselves by what they run.
    script = f'/bin/sh -c \'"{sys.executable}" "{rank}" {redirection}; :\'; :'
    leader, follower = pty.openpty()
    try:
        subprocess.run([str(launcher), "-c", script], stderr=follower, check=True, timeout=60)
    finally:
        os.close(follower)
        os.close(leader)
    return answer.read_text() == "True"


def test_a_pipe_to_a_launcher_in_a_terminal_is_watched(tmp_path):
    assert launched_from_a_terminal(tmp_path, "2>&1 | cat")


def test_a_file_is_not_watched_whatever_the_launcher_has(tmp_path):
    assert not launched_from_a_terminal(tmp_path, f'2> "{tmp_path}/log"')


def test_a_stream_without_a_file_is_not_watched():
    assert not is_terminal(io.StringIO())
