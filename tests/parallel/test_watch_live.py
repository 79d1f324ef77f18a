"""Tests of ``hpc-dasgd watch`` during a run."""

import re
import subprocess
import sys

SETTINGS = """
[objective]
kind = "quadratic"
[budget]
seconds = 6
[log]
evaluate_every_s = 1
[straggler]
ranks = [0, 1]
delay_ms = 2
"""
TIMEOUT_S = 90


def test_a_run_is_followed_to_its_end(mpiexec, tmp_path):
    """The watcher starts before the ranks and does not disturb them."""
    (tmp_path / "settings.toml").write_text(SETTINGS)
    program = [sys.executable, "-m", "hpc_dasgd"]
    train = [mpiexec.command, "-n", "2", *program, "train", "settings.toml", "--run", "run"]
    pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    options = pipes | {"cwd": tmp_path, "env": mpiexec.environment}
    with subprocess.Popen([*program, "watch", "run", "--every", "0.2"], **options) as watching:
        try:
            assert watching.stdout.readline() == "waiting for run\n"
            trained = subprocess.run(train, timeout=TIMEOUT_S, **options)
            shown, errors = watching.communicate(timeout=TIMEOUT_S)
        finally:
            watching.kill()
    assert trained.returncode == 0, trained.stderr
    assert (watching.returncode, errors) == (0, "")
    *lines, last = shown.splitlines()
    counts = [int(re.search(r"gradients (\d+)", line)[1]) for line in lines]
    assert counts == sorted(counts)
    assert len(set(counts)) > 2  # ranks write every two seconds
    assert any("staleness" in line and "evaluated" in line and "ends in" in line for line in lines)
    assert last.startswith(f"complete: {counts[-1]} gradients on 2 ranks in ")
