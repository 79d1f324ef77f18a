"""``hpc-dasgd watch`` beside a run that goes on."""

import re
import subprocess
import sys

import pytest

SETTINGS = (
    '[objective]\nkind = "quadratic"\n[budget]\nseconds = 6\n[log]\nevaluate_every_s = 1\n'
    "[straggler]\nranks = [0, 1]\ndelay_ms = 2\n"
)
TIMEOUT_S = 90


@pytest.mark.parametrize("ending", ["complete", "killed"])
def test_a_run_is_followed_to_its_end(mpiexec, tmp_path, ending):
    """The watcher is there first, and never in the way of the ranks."""
    (tmp_path / "settings.toml").write_text(SETTINGS)
    python = [sys.executable, "-m", "hpc_dasgd"]
    pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    options = pipes | {"cwd": tmp_path, "env": mpiexec.environment}
    patience_s = {"complete": 60, "killed": 5}[ending]
    watch = [*python, "watch", "run", "--every", "0.2"]
    train = [mpiexec.command, "-n", "2", *python, "train", "settings.toml", "--run", "run"]
    with subprocess.Popen([*watch, "--patience", "60"], **options) as watching:
        first = watching.stdout.readline()
        with subprocess.Popen(train, **options) as training:
            try:
                lines = [watching.stdout.readline()]
                while not re.search(r"gradients [1-9]", lines[-1]) and lines[-1]:
                    lines.append(watching.stdout.readline())
                if ending == "killed":
                    training.kill()
                    watching.kill()
                errors = training.communicate(timeout=TIMEOUT_S)[1]
                if ending == "complete":
                    said, watch_errors = watching.communicate(timeout=TIMEOUT_S)
            finally:
                training.kill()
                watching.kill()
    assert first == "waiting for run\n"
    if ending == "killed":
        done = subprocess.run([*watch, "--patience", str(patience_s)], timeout=TIMEOUT_S, **options)
        assert (done.returncode, done.stderr) == (0, "")
        assert "no news for" in done.stdout.splitlines()[-1]
        return
    assert (training.returncode, watching.returncode, watch_errors) == (0, 0, ""), errors
    lines += said.splitlines()
    counts = [int(re.search(r"gradients (\d+)", line)[1]) for line in lines[:-1]]
    assert counts == sorted(counts) and len(set(counts)) > 2
    assert any("staleness" in line and "evaluated" in line for line in lines)
    assert re.match(r"complete: \d+ gradients on 2 ranks in", lines[-1])
