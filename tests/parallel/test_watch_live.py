"""``hpc-dasgd watch`` beside a run that goes on."""

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
    """The watcher is there first, and never in the way of the ranks."""
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
    *looks, last = shown.splitlines()
    counts = [int(re.search(r"gradients (\d+)", look)[1]) for look in looks]
    assert counts == sorted(counts)
    assert len(set(counts)) > 2  # ranks write every two seconds
    assert any("staleness" in look and "evaluated" in look and "ends in" in look for look in looks)
    assert last.startswith(f"complete: {counts[-1]} gradients on 2 ranks in ")
