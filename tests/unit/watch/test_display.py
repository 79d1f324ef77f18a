"""Tests of repeated output, in files and on a terminal, and of the command."""

import io
import os
import pty
import re
import subprocess
import sys

import pytest

from hpc_dasgd.cli.main import main
from hpc_dasgd.errors import ConfigError
from hpc_dasgd.storage.layout import RUN_FILE
from hpc_dasgd.storage.run_file import stop_run
from hpc_dasgd.watch import display
from hpc_dasgd.watch.text import screen_lines
from tests.unit.watch.runs import WRITTEN_S, read_status, write_run


class Clock:
    """A clock that advances only by `sleep`; each call of `sleep` also triggers the next of `events`."""

    def __init__(self, now_s, *events):
        self.now_s, self._events, self.n_slept = now_s, iter(events), 0

    def __call__(self):
        return self.now_s

    def sleep(self, seconds):
        self.now_s += seconds
        self.n_slept += 1
        next(self._events, lambda: None)()


def follow(path, clock, every_s=2.0, patience_s=60.0):
    """Return the lines that `watch` prints if its output is not a terminal."""
    stream = io.StringIO()
    display.watch(path, every_s, patience_s, stream, clock, clock.sleep)
    return stream.getvalue().splitlines()


def test_watching_ends_when_the_run_was_stopped(tmp_path):
    write_run(tmp_path)
    stop_run(tmp_path, {"gradients": 300, "seconds": 50.0})
    *lines, last = follow(tmp_path, Clock(WRITTEN_S + 1e6))
    assert last.startswith("stopped by a signal, continue with --resume: 300 gradients on 3 ranks in 50.0 s (6/s)")
    assert len(lines) == 1 and "ends in" not in lines[0]


def test_a_complete_run_is_shown_once(tmp_path):
    write_run(tmp_path, summary={"gradients": 300, "seconds": 50.0})
    clock = Clock(WRITTEN_S + 1e6)
    *lines, last = follow(tmp_path, clock)
    assert last == "complete: 300 gradients on 3 ranks in 50.0 s (6/s), loss 0.25, accuracy 0.875"
    assert len(lines) == 1 and clock.n_slept == 0
    assert "ends in" not in lines[0]


def test_a_run_is_followed_until_it_is_complete(tmp_path):
    """Ends with the status at the new ``run.h5``."""
    write_run(tmp_path)
    complete = tmp_path / "elsewhere"
    write_run(complete, summary={"gradients": 300, "seconds": 50.0})
    clock = Clock(WRITTEN_S, lambda: None, lambda: os.replace(complete / RUN_FILE, tmp_path / RUN_FILE))
    *lines, last = follow(tmp_path, clock)
    assert len(lines) == 3 and last.startswith("complete: 300 gradients")


def test_a_killed_run_is_recognized_immediately_by_its_modification_times(tmp_path):
    write_run(tmp_path)
    clock = Clock(WRITTEN_S + 3600)
    *lines, last = follow(tmp_path, clock)
    assert last == "no news for 3600 s: the job was killed or hangs"
    assert len(lines) == 1 and clock.n_slept == 0


def test_watching_ends_when_no_file_has_changed_for_the_patience(tmp_path):
    write_run(tmp_path)
    *lines, last = follow(tmp_path, Clock(WRITTEN_S + 5), every_s=2.0, patience_s=10.0)
    assert last == "no news for 11 s: the job was killed or hangs"
    assert len(lines) == 4


def test_modification_times_in_the_future_do_not_prolong_the_patience(tmp_path):
    write_run(tmp_path)
    lines = follow(tmp_path, Clock(WRITTEN_S - 3600), every_s=2.0, patience_s=10.0)
    assert lines[-1] == "no news for 10 s: the job was killed or hangs"


@pytest.mark.parametrize("made", ["nothing", "directory", "run file"])
def test_a_run_that_does_not_exist_yet_is_waited_for(tmp_path, made):
    directory = tmp_path / "run"
    if made == "directory":
        directory.mkdir()
    if made == "run file":
        directory.mkdir()
        (directory / RUN_FILE).touch()

    def make():
        (directory / RUN_FILE).unlink(missing_ok=True)
        write_run(directory, summary={"gradients": 300, "seconds": 50.0})

    lines = follow(directory, Clock(WRITTEN_S, lambda: None, make))
    assert lines[0] == f"waiting for {directory}"
    assert len(lines) == 3 and lines[-1].startswith("complete")


def test_a_run_that_does_not_appear_is_an_error(tmp_path):
    clock = Clock(WRITTEN_S)
    with pytest.raises(ConfigError, match=r"run must be a run directory or its run\.h5: No such file"):
        follow(tmp_path / "run", clock, every_s=2.0, patience_s=9.0)
    assert clock.n_slept == 5


@pytest.mark.parametrize("place", ["nowhere/run", "file", "file/run"])
def test_a_path_where_no_run_can_be_created_is_an_immediate_error(tmp_path, place):
    (tmp_path / "file").touch()
    clock = Clock(WRITTEN_S)
    with pytest.raises(ConfigError, match="must be a run directory"):
        follow(tmp_path / place, clock)
    assert clock.n_slept == 0


TERMINAL = """
import itertools, sys
from hpc_dasgd.watch.display import watch
clock = itertools.count(1e9, 2.0).__next__
watch(sys.argv[1], 2.0, 5.0, None, clock, lambda seconds: None)
assert ("rich" in sys.modules) == (sys.argv[2] == "xterm")
"""


def shown_on_terminal(directory, term, n_rows=20):
    """Return what `watch` writes to a terminal of 70 columns, on which it reads the status of a run three times."""
    leader, follower = pty.openpty()
    environment = os.environ | {"COLUMNS": "70", "LINES": str(n_rows), "TERM": term}
    command = [sys.executable, "-c", TERMINAL, str(directory), term]
    with subprocess.Popen(command, stdout=follower, env=environment) as process:
        os.close(follower)
        shown = b""
        while piece := read(leader):
            shown += piece
    os.close(leader)
    assert process.returncode == 0
    return shown.decode().replace("\r\n", "\n")


def screen_after(written):
    """Return the lines of a terminal after text with the escape sequences that move its cursor up and erase lines."""
    lines, row, column = [""], 0, 0
    for sequence, character in re.findall(r"(\x1b\[\??\d*[A-Za-z])|(.|\n)", written):
        if sequence == "\x1b[1A":
            row -= 1
            assert row >= 0
        elif sequence == "\x1b[2K":
            lines[row] = ""
        elif sequence:
            assert sequence in ("\x1b[?25l", "\x1b[?25h")  # the cursor is hidden and shown again
        elif character == "\n":
            row, column = row + 1, 0
            lines += [""] * (row + 1 - len(lines))
        elif character == "\r":
            column = 0
        else:
            lines[row] = lines[row][:column].ljust(column) + character
            column += 1
    return [line.rstrip() for line in lines]


def test_a_terminal_is_redrawn_in_place(tmp_path):
    write_run(tmp_path)
    shown = shown_on_terminal(tmp_path, "xterm")
    assert shown.count("gradients 300/1000") == 3 + 1  # the last status is drawn once more at the end
    *lines, last, end = screen_after(shown)
    assert lines == [line[:69].rstrip() for line in screen_lines(read_status(tmp_path, WRITTEN_S + 6), 69, 18)]
    assert last.startswith("no news for 6 s") and end == ""
    assert shown.count("\x1b[?25l") == shown.count("\x1b[?25h")


@pytest.mark.parametrize("n_rows", [6, 12])
def test_a_display_has_no_more_lines_than_its_terminal(tmp_path, n_rows):
    write_run(tmp_path, n_ranks=30, n_gradients=600)
    *lines, _, _ = screen_after(shown_on_terminal(tmp_path, "xterm", n_rows))
    assert len(lines) == n_rows - 2 and max(map(len, lines)) <= 69
    assert any("ranks between the slowest and the fastest" in line for line in lines) == (n_rows > 7)


def test_a_terminal_without_cursor_movement_gets_lines(tmp_path):
    write_run(tmp_path)
    shown = shown_on_terminal(tmp_path, "dumb")
    assert "\x1b" not in shown
    assert [line.split()[2] for line in shown.splitlines()] == ["gradients"] * 3 + ["for"]


def read(descriptor):
    try:
        return os.read(descriptor, 65536)
    except OSError:  # Linux raises it when no writer is left
        return b""


# The command.


def test_the_command_follows_a_run(tmp_path, capsys):
    write_run(tmp_path, summary={"gradients": 300, "seconds": 50.0})
    assert main(["watch", str(tmp_path), "--every", "0.5", "--patience", "1"]) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("complete: 300 gradients")


@pytest.mark.parametrize("option", ["--every", "--patience"])
@pytest.mark.parametrize("value", ["0", "-1", "nan", "soon", "inf"])
def test_the_command_refuses_times_that_are_not_positive(tmp_path, capsys, option, value):
    assert main(["watch", str(tmp_path), f"{option}={value}"]) == 2
    assert f"{option}: must be a positive number, got '{value}'" in capsys.readouterr().err


def test_ctrl_c_ends_the_command_without_a_message(tmp_path, capsys, monkeypatch):
    write_run(tmp_path)
    os.utime(tmp_path / RUN_FILE)  # now

    def interrupted(seconds):
        raise KeyboardInterrupt

    monkeypatch.setattr(display.watch, "__defaults__", (*display.watch.__defaults__[:-1], interrupted))
    with pytest.raises(SystemExit) as ended:
        main(["watch", str(tmp_path)])
    captured = capsys.readouterr()
    assert ended.value.code == 130
    assert (len(captured.out.splitlines()), captured.err) == (1, "")
