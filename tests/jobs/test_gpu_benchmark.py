"""The page that ``jobs/benchmarks/gpu/benchmark.py`` writes, its timing, and how it handles parts that fail."""

import os
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from jobs.benchmarks.gpu import benchmark, rounds


def test_hidden_share_is_one_minus_the_added_time_over_the_time_of_the_exchange():
    assert rounds.hidden_share(none_s=0.010, read_s=0.010, exchange_s=0.004) == 1
    assert rounds.hidden_share(none_s=0.010, read_s=0.014, exchange_s=0.004) == pytest.approx(0)
    assert rounds.hidden_share(none_s=0.010, read_s=0.011, exchange_s=0.004) == pytest.approx(0.75)
    assert rounds.hidden_share(none_s=0.010, read_s=0.018, exchange_s=0.004) == pytest.approx(-1)


def test_error_is_relative_to_the_norm_and_nan_exceeds_every_bound():
    expected = np.array([3.0, 4.0])
    assert rounds.relative_error(expected, expected) == 0
    assert rounds.relative_error(np.array([3.0, 4.5]), expected) == pytest.approx(0.1)
    assert not rounds.relative_error(np.array([3.0, np.nan]), expected) <= 1


class SimulatedClock:
    """Stands for the module `time`: only `pass_s` moves it, so that no test depends on how busy the machine is."""

    def __init__(self):
        self.now_s = 0.0

    def perf_counter(self):
        return self.now_s

    def pass_s(self, seconds):
        self.now_s += seconds


@pytest.fixture
def clock(monkeypatch):
    clock = SimulatedClock()
    monkeypatch.setattr(rounds, "time", clock)
    return clock


def test_steps_are_timed_in_turns_and_the_first_round_does_not_count(clock):
    calls = []

    def step(name, seconds):
        calls.append(name)
        clock.pass_s(seconds)

    steps = {"slow": lambda: step("slow", 0.25), "fast": lambda: step("fast", 0.125)}
    samples = rounds.time_in_turns(steps, lambda: calls.append("wait"), round_s=1e-9, n_rounds=2)
    assert calls[-3 * 6 :] == 3 * ["wait", "slow", "wait", "wait", "fast", "wait"]
    assert samples == {"slow": [0.25, 0.25], "fast": [0.125, 0.125]}


def test_step_is_repeated_for_the_length_of_a_round_and_a_sample_is_the_time_of_one(clock):
    calls = []

    def step():
        calls.append(1)
        clock.pass_s(0.125)

    assert rounds.time_in_turns({"step": step}, lambda: None, round_s=1.0, n_rounds=1) == {"step": [0.125]}
    assert len(calls) == rounds.WARM_UP_STEPS + 2 * 8


def gradient_row(contender, seconds, network="mlp", **more):
    row = {"network": network, "precision": "float32", "contender": contender, "error": 2e-7}
    return row | ({"seconds": seconds} if seconds else {}) | more


def found(device="gpu", small=False):
    gradients = [
        gradient_row("hpc_dasgd", [0.005, 0.004, 0.1]),
        gradient_row("PyTorch eager", [0.004, 0.004, 0.004]),
        gradient_row("torch.compile", None, failed="no compiler"),
    ]
    ranks = {"n_ranks": 2, "n_params": 20_000_000, "none": [100.0, 90.0, 110.0], "read": [95.0], "exchange_s": 0.004}
    copy = {"direction": "device to window", "bytes": 80_000_000, "page_locked": True}
    parts = {
        "mlp float32": {"kind": "gradients", "rows": gradients},
        "2 ranks": {"kind": "ranks", "rows": [ranks | {"S_avg": 1.25, "S_max": 3, "reads": 0.5}]},
        "copies": {"kind": "copies", "rows": [copy | {"window": [0.002], "limit": [0.0016]}]},
        "cnn float32": {"kind": "gradients", "rows": [], "failed": "took longer than 100 s", "log": ""},
    }
    return {
        "job": "jobs/benchmarks/gpu/benchmark.py",
        "device": device,
        "small": small,
        "machine": {"gpu": "x"},
        "parts": parts,
    }


def test_page_has_medians_ratios_and_marks():
    lines = benchmark.text(found()).splitlines()
    assert "| mlp | float32 | hpc_dasgd | 5.000 | 0.80 (BELOW 0.90) | 2.0e-07 |" in lines
    assert "| mlp | float32 | PyTorch eager | 4.000 | 1.00 | 2.0e-07 |" in lines
    assert "| mlp | float32 | torch.compile | - | - | 2.0e-07 |" in lines
    # A step takes 20 ms alone and 21.05 ms with `read`, whose exchange alone takes 4 ms.
    assert "| 2 | 20,000,000 | 100.0 | 95.0 | 0.95 (reaches 0.90) | 1.25 | 3.00 | 0.50 | 4.00 | 0.74 |" in lines
    assert "| device to window | 80 | 40.0 | 50.0 | 0.80 (reaches 0.80) | yes |" in lines


@pytest.mark.parametrize("other", [{"device": "cpu"}, {"small": True}])
def test_marks_are_shown_only_for_a_gpu_at_full_size(other):
    assert "BELOW" not in benchmark.text(found(**other)) and "reaches" not in benchmark.text(found(**other))


def test_page_lists_failures():
    lines = benchmark.text(found()).splitlines()
    assert "## Failed: 2" in lines
    assert "- mlp float32, torch.compile: no compiler" in lines
    assert "- cnn float32: took longer than 100 s" in lines


def run(script, limit_s=30.0):
    return benchmark.run(benchmark.Part("copies", [sys.executable, "-c", script, "OUTPUT"], limit_s), limit_s)


def test_part_returns_its_rows():
    outcome = run("import sys; open(sys.argv[1], 'w').write('[{\"bytes\": 1}]')")
    assert outcome["rows"] == [{"bytes": 1}] and "failed" not in outcome


def test_failed_part_has_exit_status_reason_and_log():
    outcome = run("import sys\nprint('before')\ntry:\n    1 / 0\nfinally:\n    print('after', file=sys.stderr)")
    assert outcome["failed"] == "exit status 1: ZeroDivisionError: division by zero" and outcome["rows"] == []
    assert "before" in outcome["log"] and "after" in outcome["log"]
    assert run("raise SystemExit(3)")["failed"] == "exit status 3: it printed nothing"


@pytest.mark.parametrize(
    "line",
    [
        "cupy_backends.cuda.api.runtime.CUDARuntimeError: cudaErrorNoDevice: no CUDA-capable device is detected",
        "hpc_dasgd.errors.ConfigError: `device.kind` must be one of cpu, gpu, auto, got 'tpu'",
        "YOUR APPLICATION TERMINATED WITH THE EXIT STRING: Segmentation fault (signal 11)",
        "=   KILLED BY SIGNAL: 11 (Segmentation fault)",
    ],
)
def test_reason_of_a_failure_is_the_line_that_names_the_error(line):
    assert benchmark.reason(f"Traceback:\n  File x\n{line}\nThis typically refers to a problem.\n\n") == line


def test_part_whose_program_is_missing_fails():
    part = benchmark.Part("ranks", ["/nowhere/mpiexec", "-n", "2"], 30)
    assert benchmark.run(part, 30)["failed"].startswith("cannot be started: [Errno 2]")


def test_part_that_exceeds_its_time_limit_is_ended_with_all_its_processes(tmp_path):
    child = tmp_path / "child"
    script = (
        "import subprocess, sys, time\n"
        "process = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        f"open({str(child)!r}, 'w').write(str(process.pid))\n"
        "open(sys.argv[1], 'w').write('[{\"bytes\": 1}]')\n"
        "time.sleep(600)"
    )
    outcome = run(script, limit_s=2)
    assert outcome["failed"] == "took longer than 2 s" and outcome["rows"] == [{"bytes": 1}]
    status = Path(f"/proc/{child.read_text()}/status")
    ends_s = time.monotonic() + 10
    while status.exists() and "zombie" not in status.read_text() and time.monotonic() < ends_s:
        os.sched_yield()
    assert not status.exists() or "zombie" in status.read_text()


GRADIENTS = ["-m", "jobs.benchmarks.gpu.gradients"]
SMALL_MLP = ["OUTPUT", "mlp", "float32", "--device", "cpu", "--small", "--contenders"]


def test_gradients_are_compared_with_pytorch():
    pytest.importorskip("torch", reason="needs PyTorch")
    names = ["hpc_dasgd", "PyTorch eager", "from_torch"]
    outcome = benchmark.run(benchmark.Part("gradients", [sys.executable, *GRADIENTS, *SMALL_MLP, *names], 60), 60)
    assert "failed" not in outcome and [row["contender"] for row in outcome["rows"]] == names
    for row in outcome["rows"]:
        assert "failed" not in row and row["n_params"] == 784 * 256 + 256 * 256 + 256 * 10 + 522
        assert 0 < row["error"] < 1e-5 and len(row["seconds"]) == 7 and min(row["seconds"]) > 0


def test_wrong_gradient_is_reported_and_not_timed():
    script = """
from jobs.benchmarks.gpu import gradients

class Off(gradients.Own):
    def gradient(self):
        return 1.01 * super().gradient()

class Broken:
    def __init__(self, *_):
        raise MemoryError("no room\\nat all")

gradients.CONTENDERS |= {"torch.compile": Off, "from_torch": Broken}
gradients.main()
"""
    names = ["hpc_dasgd", "from_torch", "torch.compile"]
    outcome = benchmark.run(benchmark.Part("gradients", [sys.executable, "-c", script, *SMALL_MLP, *names], 60), 60)
    assert "failed" not in outcome, outcome["log"]
    own, broken, off = outcome["rows"]
    assert "failed" not in own and len(own["seconds"]) == 7
    assert broken["failed"] == "MemoryError: no room" and "seconds" not in broken
    assert off["failed"] == "the gradient is wrong: error 1.0e-02, at most 2e-03 is allowed" and "seconds" not in off
