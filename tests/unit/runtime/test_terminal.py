"""Detection of terminals: directly, through a launcher, and of streams that are none."""

import io
import os
import pty
import subprocess
import sys

from hpc_dasgd.runtime.terminal import is_terminal


def is_terminal_under_launcher(tmp_path, redirection):
    """Return whether a process started by a launcher in a terminal regards its standard error as a terminal.

    The launcher is a shell with the name mpiexec.
    """
    launcher, answer, rank = (tmp_path / name for name in ("mpiexec", "answer", "rank.py"))
    os.symlink("/bin/sh", launcher)
    rank.write_text(
        "import pathlib, sys\n"
        "from hpc_dasgd.runtime.terminal import is_terminal\n"
        f"pathlib.Path({str(answer)!r}).write_text(str(is_terminal(sys.stderr)))\n"
    )
    # Some shells redirect their own streams while they wait, hence the shell in between. The colons prevent both shells
    # from replacing themselves by the command.
    script = f'/bin/sh -c \'"{sys.executable}" "{rank}" {redirection}; :\'; :'
    leader, follower = pty.openpty()
    try:
        subprocess.run([str(launcher), "-c", script], stderr=follower, check=True, timeout=60)
    finally:
        os.close(follower)
        os.close(leader)
    return answer.read_text() == "True"


def test_a_pseudo_terminal_is_a_terminal():
    leader, follower = pty.openpty()
    try:
        with open(follower, "w", closefd=False) as stream:
            assert is_terminal(stream)
    finally:
        os.close(follower)
        os.close(leader)


def test_a_pipe_to_a_launcher_in_a_terminal_is_a_terminal(tmp_path):
    assert is_terminal_under_launcher(tmp_path, "2>&1 | cat")


def test_a_file_is_not_a_terminal_under_a_launcher_in_a_terminal(tmp_path):
    assert not is_terminal_under_launcher(tmp_path, f'2> "{tmp_path}/log"')


def test_a_file_is_not_a_terminal(tmp_path):
    with open(tmp_path / "log", "w") as stream:
        assert not is_terminal(stream)


def test_a_stream_without_a_file_descriptor_is_not_a_terminal():
    assert not is_terminal(io.StringIO())
