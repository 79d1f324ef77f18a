"""Tests of the program ``hpc-dasgd``: exit status, standard output and error, with and without ``mpiexec``."""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import h5py
import numpy as np
import pytest

import hpc_dasgd

DIGITS = Path(__file__).parents[2] / "jobs" / "digits.toml"
TIMEOUT_S = 60  # much more than any test needs; processes that are left end after `SECONDS`
SECONDS = 90
# Variables that the package sets by default. `conftest` sets them too, and the program must not depend on that.
DEFAULTS = ("OMP_NUM_THREADS", "UCX_LOG_LEVEL", "HDF5_USE_FILE_LOCKING", "OMPI_MCA_osc")
BANNER = re.compile(r"-{60,}\n.*?-{60,}\n", re.DOTALL)  # printed by Open MPI if a rank fails
LAUNCHER = re.compile(r"\[\S+:\d+\] PMIX ERROR: ")  # printed by its launcher at times if a rank fails
QUADRATIC = '[objective]\nkind = "quadratic"\n[budget]\ngradients = 100\n'


class Program:
    """Starts the program on some ranks, or without a launcher if `n_ranks` is None."""

    def __init__(self, mpiexec, folder):
        self._mpiexec, self.folder = mpiexec, folder
        self._environment = {name: v for name, v in mpiexec.environment.items() if name not in DEFAULTS}

    def command(self, n_ranks):
        launcher = [] if n_ranks is None else [self._mpiexec.command, "-n", str(n_ranks)]
        return [*launcher, sys.executable, "-m", "hpc_dasgd"]

    def options(self, environment=None):
        """Return the keyword arguments for `subprocess`."""
        pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        text = {"text": True, "errors": "replace"}
        return pipes | text | {"cwd": self.folder, "env": self._environment | (environment or {})}

    def __call__(self, n_ranks, *arguments, environment=None):
        command = [*self.command(n_ranks), *map(str, arguments)]
        return subprocess.run(command, timeout=TIMEOUT_S, **self.options(environment))


@pytest.fixture
def program(mpiexec, tmp_path):
    (tmp_path / "quadratic.toml").write_text(QUADRATIC)
    (tmp_path / "faulty.py").write_text(FAULTY)
    (tmp_path / "faulty.toml").write_text(FAULTY_SETTINGS)
    return Program(mpiexec, tmp_path)


@pytest.fixture(scope="module")
def trained(mpiexec, tmp_path_factory):
    """A program, the output of a training run of it on 2 ranks, and its run directory."""
    program = Program(mpiexec, tmp_path_factory.mktemp("trained"))
    done = program(2, "train", DIGITS, "--set", "budget.gradients=2000")
    assert done.returncode == 0, done.stderr
    return program, done, next((program.folder / "runs").iterdir())


def our_lines(stderr):
    """Return the lines of standard error without those of Open MPI's launcher."""
    lines = BANNER.sub("", stderr.replace("\0", "")).strip().splitlines()
    return [line for line in lines if not LAUNCHER.match(line)]


def assert_refused(done, *fragments):
    """Assert exit status 2, no standard output, and one line on standard error with all `fragments`."""
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    lines = our_lines(done.stderr)
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("hpc-dasgd: ")
    assert all(fragment in lines[0] for fragment in fragments), lines[0]


# All commands on one run.


def test_train_prints_a_summary_and_progress_only(trained):
    _, done, run = trained
    lines = done.stdout.splitlines()
    assert [line.partition(":")[0] for line in lines] == ["done", "reached", "files", "next"]
    assert re.fullmatch(r"done: 2\d{3} gradients on 2 ranks in \d+\.\d s \(\d+/s\)", lines[0])
    assert re.fullmatch(r"reached: loss [\d.e-]+, accuracy [\d.]+ on the evaluation set", lines[1])
    assert lines[2:] == [f"files: runs/{run.name}", f"next: hpc-dasgd report runs/{run.name}"]
    progress = re.compile(r" *[\d.]+ s  step \d+  gradients \d+/2000  \d+/s  loss [\d.e-]+  staleness [\d.]+")
    assert all(progress.fullmatch(line) for line in done.stderr.splitlines()), done.stderr


def test_the_run_directory_is_named_after_the_settings(trained):
    _, _, run = trained
    assert re.fullmatch(r"digits-\d{8}-\d{6}", run.name)
    assert {path.name for path in run.glob("*.h5")} == {"run.h5", "rank_00000.h5", "rank_00001.h5"}
    assert hpc_dasgd.open_run(run).status == "complete"


def test_the_command_that_train_suggests_works(trained):
    program, done, run = trained
    command = shlex.split(done.stdout.splitlines()[-1].removeprefix("next: "))
    script = Path(sys.executable).parent / command[0]
    report = subprocess.run([script, *command[1:]], timeout=TIMEOUT_S, **program.options())
    assert report.returncode == 0, report.stderr
    assert report.stderr == ""
    plots = [line.removeprefix("plot: ") for line in report.stdout.splitlines() if line.startswith("plot: ")]
    assert len(plots) == 9
    for plot in plots:
        assert (program.folder / plot).parent == run / "report"
        assert (program.folder / plot).read_bytes().startswith(b"\x89PNG")


def test_report_writes_to_the_output_directory(trained, tmp_path):
    program, _, run = trained
    done = program(None, "report", run, "--output", tmp_path / "plots")
    assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "plots").glob("*.png"))) == 9
    assert str(tmp_path / "plots") in done.stdout


def test_staleness_prints_text_and_json(trained):
    program, _, run = trained
    text = program(None, "staleness", run)
    assert (text.returncode, text.stderr) == (0, "")
    done = program(None, "staleness", run, "--json")
    assert (done.returncode, done.stderr) == (0, "")
    found = json.loads(done.stdout)
    assert {"S_avg", "S_rms", "S_max", "W_max", "gradients", "n_ranks"} <= set(found)
    assert found["n_ranks"] == 2
    assert found["gradients"] == len(hpc_dasgd.open_run(run).gradients)
    assert 0 <= found["S_avg"] <= found["S_rms"] <= found["S_max"]
    assert f"S_avg {found['S_avg']:.4g}" in text.stdout


def test_replay_recomputes_a_run_and_single_states(trained, tmp_path):
    program, _, run = trained
    done = program(None, "replay", run)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("agrees: ")
    done = program(None, "replay", run, "--inspect", "1:7", "--output", tmp_path / "moment.npz")
    assert (done.returncode, done.stderr) == (0, "")
    with np.load(tmp_path / "moment.npz") as moment:
        assert moment["versions"].tolist() == hpc_dasgd.open_run(run).versions[1][7].tolist()
        assert moment["parameters"].shape == moment["gradient"].shape == hpc_dasgd.open_run(run).final.shape
    done = program(None, "replay", run, "--until", "40")
    assert (done.returncode, done.stderr) == (0, "")
    assert "holds 40 updates" in done.stdout


def test_replay_fails_if_the_log_was_changed(trained, tmp_path):
    program, _, run = trained
    shutil.copytree(run, tmp_path / "changed")
    with h5py.File(tmp_path / "changed" / "rank_00000.h5", "r+") as file:
        file["gradient/loss"][100] += 1e-6
    done = program(None, "replay", tmp_path / "changed")
    assert done.returncode == 1
    assert done.stdout.startswith("DIFFERS: ")
    assert "gradient 100 of rank 0" in done.stdout
    assert our_lines(done.stderr)[-1].endswith("does not agree with its log")


def test_bound_prints_text_and_json(trained):
    program, _, run = trained
    done = program(None, "bound", run, "--json", "--set", "L=20")
    assert (done.returncode, done.stderr) == (0, "")
    found = json.loads(done.stdout)
    assert found["constants"]["L"] == {"value": 20.0, "error": 0.0, "source": "given"}
    for name in ("A", "B"):
        assert found[name]["value"] == pytest.approx(sum(found[name]["terms"].values()))
    text = program(None, "bound", run).stdout
    assert "how it is known" in text
    assert "rates of arXiv 2309.03754" in text


def test_plan_prints_text_and_json(trained):
    program, _, run = trained
    done = program(None, "plan", DIGITS, "--ranks", "3", "--from", run, "--json")
    assert (done.returncode, done.stderr) == (0, "")
    found = json.loads(done.stdout)
    assert {"gradients_per_s", "S_avg", "S_max", "n_ranks"} <= set(found)
    assert found["n_ranks"] == 3
    assert 0 < found["safe_stepsize"] < 1
    assert "safe stepsize " in program(None, "plan", DIGITS, "--ranks", "3").stdout


def test_export_writes_named_arrays_equal_to_the_final_parameters(trained, tmp_path):
    program, _, run = trained
    done = program(None, "export", run, tmp_path / "parameters.npz")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"parameters: {tmp_path / 'parameters.npz'}\n"
    with np.load(tmp_path / "parameters.npz") as arrays:
        shapes = {array.shape for array in arrays.values()}
        flat = np.concatenate([array.ravel() for array in arrays.values()])
    assert shapes == {(64, 128), (128,), (128, 128), (128, 10), (10,)} or shapes == {
        (128, 64), (128,), (128, 128), (10, 128), (10,)
    }  # fmt: skip
    assert flat.dtype == np.float32
    assert flat.tobytes() == hpc_dasgd.open_run(run).final.tobytes()


def test_one_rank_without_a_launcher_in_a_directory_with_a_space(program):
    done = program(None, "train", "quadratic.toml", "--run", "a run")
    assert (done.returncode, done.stderr) == (0, "")
    assert "100 gradients on 1 ranks" in done.stdout
    assert done.stdout.splitlines()[-1] == "next: hpc-dasgd report 'a run'"


# Help.


def test_help_does_not_start_mpi(program):
    """Any import of mpi4py fails in this test."""
    (program.folder / "mpi4py").mkdir()
    (program.folder / "mpi4py" / "__init__.py").write_text("raise ImportError('MPI was started')\n")
    environment = {"PYTHONPATH": os.pathsep.join([str(program.folder), os.environ.get("PYTHONPATH", "")])}
    done = program(None, "--help", environment=environment)
    assert (done.returncode, done.stderr) == (0, "")
    assert all(command in done.stdout for command in ("train", "report", "staleness", "export"))
    done = program(None, "train", "--help", environment=environment)
    assert (done.returncode, done.stderr) == (0, "")
    for word in (
        "exchange.consistency",
        "budget.target_loss",
        "straggler.delay_ms",
        "quadratic",
        "mlp",
        "noise",
    ):
        assert word in done.stdout
    assert program(None, "train", "quadratic.toml", environment=environment).returncode == 1


# Wrong settings, files and command lines.

WRONG_SETTINGS = {
    "budget.seconds=-1": ("`budget.seconds` must be a positive number", "got -1"),
    "data.batch_size=0": ("`data.batch_size`", "positive integer"),
    "optimizer.kind=sdg": ("`optimizer.kind`", '"sgd", "momentum", "adam"', "'sdg'"),
    "exchange.topolgy=tree": ("unknown key `exchange.topolgy`", "did you mean topology"),
    "objective.dimensions=3": ("unknown key `objective.dimensions`", "dimension"),
    "objective.kind=resnet": ("`objective.kind`", "quadratic, logistic, softmax, mlp, cnn"),
    "objective.kind=nowhere:make": ("`objective.kind`", "nowhere:make"),
    "budget.gradients": ("--set must be", "'budget.gradients'"),
    "device.kind=gpu": ("`device.kind`",),
}


@pytest.mark.parametrize("override", WRONG_SETTINGS)
def test_a_wrong_override_is_refused(program, override):
    done = program(None, "train", "quadratic.toml", "--set", override, "--run", "run")
    assert_refused(done, *WRONG_SETTINGS[override])
    assert not (program.folder / "run").exists()


@pytest.mark.parametrize(
    ("text", "fragments"),
    [
        ("[budget]\ngradients = 0\n", ("`budget.gradients` must be a positive integer, got 0",)),
        ("[budgets]\ngradients = 1\n", ("unknown key `budgets`", "budget")),
        ("[budget\n", ("wrong.toml is not TOML",)),
        ("", ("`budget` must set at least one of",)),
        ("[budget]\ngradients = 1\n", ("`data.path` must be set",)),
        (None, ("cannot read settings file wrong.toml",)),
    ],
)
def test_a_wrong_settings_file_is_refused(program, text, fragments):
    if text is not None:
        (program.folder / "wrong.toml").write_text(text)
    assert_refused(program(None, "train", "wrong.toml"), *fragments)


def write_data(path, x=((1.0, 2.0),) * 3, y=(0, 1, 1)):
    with h5py.File(path, "w") as file:
        for split in ("train", "test"):
            file[f"{split}/x"], file[f"{split}/y"] = x, y


@pytest.mark.parametrize(
    ("data", "rule"),
    [
        (None, "`data.path` must be a data set file"),
        ("text", "`data.path` must be a readable HDF5 file"),
        ({"x": [b"a", b"b", b"c"]}, "`/train/x` of data.h5 must hold numbers"),
        ({"x": np.zeros((0, 2)), "y": np.zeros(0, int)}, "`/train/x` of data.h5 must have at least 1 row"),
        ({"y": [0, 1]}, "`/train/y` of data.h5 must have 3 rows, as x has, got 2"),
        ({"x": [[1.0, 2.0], [np.nan, 0.0], [0.0, 0.0]]}, "`/train/x` of data.h5 must be finite"),
    ],
)
def test_a_wrong_data_file_is_refused(program, data, rule):
    if data == "text":
        (program.folder / "data.h5").write_text("x,y\n1,2\n")
    elif data is not None:
        write_data(program.folder / "data.h5", **data)
    overrides = ("--set", "objective.kind=softmax", "--set", "data.path=data.h5")
    assert_refused(program(None, "train", "quadratic.toml", *overrides), rule, "data.h5")


@pytest.mark.parametrize(
    ("arguments", "fragments"),
    [
        ((), ("required: COMMAND", "hpc-dasgd --help")),
        (("trian",), ("invalid choice: 'trian'", "train")),
        (("train",), ("required: CONFIG.toml", "hpc-dasgd train --help")),
        (("train", "quadratic.toml", "--ste", "seed=1"), ("unrecognized arguments: --ste",)),
        (("staleness", "nowhere"), ("nowhere must be a run directory",)),
        (("report", "nowhere"), ("nowhere must be a run directory",)),
        (("export", "nowhere", "x.npz"), ("nowhere must be a run directory",)),
        (("export", "nowhere"), ("required: PARAMETERS.npz",)),
    ],
)
def test_a_wrong_command_line_is_refused(program, arguments, fragments):
    assert_refused(program(None, *arguments), *fragments)


def test_a_run_directory_is_never_overwritten(program):
    train = ("train", "quadratic.toml", "--run", "run")
    assert program(None, *train).returncode == 0
    before = {path: path.read_bytes() for path in (program.folder / "run").rglob("*.h5")}
    for n_ranks in (None, 4):
        assert_refused(program(n_ranks, *train), "`--run` must be a directory that holds no run yet, got run")
    assert before == {path: path.read_bytes() for path in (program.folder / "run").rglob("*.h5")}
    assert_refused(program(None, "train", "quadratic.toml", "--resume"), "--resume needs --run DIR")


def test_a_run_directory_that_cannot_be_created_is_refused(program):
    """Root cannot create directories in ``/proc`` either."""
    for place in ("quadratic.toml/run", "/proc/run"):
        done = program(None, "train", "quadratic.toml", "--run", place)
        assert_refused(done, f"cannot make run directory {place}")
    (program.folder / "runs").write_text("in the way")
    assert_refused(program(2, "train", "quadratic.toml"), "cannot make run directory runs/run-")
    program.folder.joinpath("runs").unlink()
    program.folder.joinpath("runs").symlink_to("nowhere/at/all")
    assert_refused(program(None, "train", "quadratic.toml"), "cannot make run directory runs/run-")


@pytest.mark.parametrize(
    ("arguments", "fragment"),
    [
        (("trian",), "invalid choice"),
        (("train", "nowhere.toml"), "nowhere.toml"),
        (("train", "quadratic.toml", "--set", "budget.gradients=0"), "`budget.gradients`"),
        (
            ("train", "quadratic.toml", "--set", "objective.kind=mlp", "--set", "data.path=nowhere"),
            "data.path",
        ),
        (
            ("train", "quadratic.toml", "--set", "straggler={ranks=[4],delay_ms=1}"),
            "below the number of ranks, 4",
        ),
    ],
)
def test_an_error_on_four_ranks_is_printed_once(program, arguments, fragment):
    assert_refused(program(4, *arguments), fragment)


def test_the_error_of_rank_0_is_printed_although_it_starts_last(program):
    """Open MPI ends all remaining ranks when the first one exits with an error."""
    (program.folder / "sitecustomize.py").write_text(
        "import os, time\n"
        "if '0' in (os.environ.get('OMPI_COMM_WORLD_RANK'), os.environ.get('PMI_RANK')):\n"
        "    time.sleep(1)\n"
    )
    environment = {"PYTHONPATH": os.pathsep.join([str(program.folder), os.environ.get("PYTHONPATH", "")])}
    assert_refused(program(2, "train", environment=environment), "required: CONFIG.toml")


def test_processes_that_are_not_connected_by_mpi_are_refused(program):
    """This happens if srun and the MPI library use different process management; only the first process prints it."""
    task = {"SLURM_NTASKS": "4", "SLURM_PROCID": "0"}
    train = ("train", "quadratic.toml", "--run", "run")
    done = program(None, *train, environment=task)
    assert_refused(done, "started 4 processes (`SLURM_NTASKS`) but MPI counts 1", "unset SLURM_NTASKS")
    done = program(None, *train, environment=task | {"SLURM_PROCID": "2"})
    assert (done.returncode, done.stdout, done.stderr) == (2, "", "")
    assert not (program.folder / "run").exists()


# Failing ranks and signals.

FAULTY_SETTINGS = f'[objective]\nkind = "faulty:Faulty"\nfault = "none"\n[budget]\nseconds = {SECONDS}\n'
FAULTY = """
import math, os, pathlib, sys

class Faulty:
    def __init__(self, data, fault):
        self.fault = fault

    def initial(self, rng):
        return rng.normal(size=10)

    def loss_and_gradient(self, parameters, batch, out):
        out[:] = 0.0
        seed, rank, version = batch.source
        if version == 10:
            pathlib.Path(f"pid-{os.getpid()}").touch()
        if rank != 2 or version != 10 or self.fault == "none":
            return 1.0
        if self.fault == "loss":
            return math.nan
        if self.fault == "gradient":
            out[-1] = math.inf
            return 1.0
        if self.fault == "exit":
            sys.exit("enough")
        if self.fault == "_exit":
            os._exit(3)
        raise RuntimeError("this is a fault")
"""


def train_faulty(program, fault):
    return program(4, "train", "faulty.toml", "--run", "run", "--set", f"objective.fault={fault}")


@pytest.mark.parametrize("fault", ["exception", "exit"])
def test_an_exception_on_one_rank_ends_the_job(program, fault):
    """The settings ask for more time than `TIMEOUT_S`."""
    done = train_faulty(program, fault)
    assert done.returncode == 1
    assert done.stdout == ""
    assert re.search(r"hpc-dasgd: \[rank 2/4 \S+\] Traceback", done.stderr)
    assert {"exception": "RuntimeError: this is a fault", "exit": "SystemExit: enough"}[fault] in done.stderr
    assert done.stderr.count("Traceback") == 1


def test_a_rank_that_exits_without_an_exception_ends_the_job(program):
    """The launcher ends the job, with an exit status of its choice."""
    assert train_faulty(program, "_exit").returncode != 0


@pytest.mark.parametrize("fault", ["loss", "gradient"])
def test_a_value_that_is_not_finite_ends_the_job_and_is_reported_with_its_rank(program, fault):
    done = train_faulty(program, fault)
    assert done.returncode == 1
    assert done.stdout == ""
    what = {"loss": "loss is nan", "gradient": "gradient norm is not finite"}[fault]
    said = [line for line in our_lines(done.stderr) if "error: " in line]
    assert len(said) == 1 and re.search(rf"\[rank 2/4 \S+\] error: {what} at gradient 10 of rank 2 \(", said[0])
    assert "Traceback" not in done.stderr
    run = hpc_dasgd.open_run(program.folder / "run")
    assert (run.status, run.n_ranks, run.final) == ("running", 4, None)
    assert run.counts[2] == 10


def test_a_far_too_large_stepsize_is_reported_as_such(program):
    done = program(2, "train", DIGITS, "--run", "run", "--set", "optimizer.stepsize=1e6")
    assert done.returncode == 1
    assert done.stdout == ""
    assert re.search(r"not finite|loss is (nan|inf)", done.stderr)
    assert re.search(r"at gradient \d+ of rank [01] \(a smaller `optimizer.stepsize` than 1e\+06 may help", done.stderr)
    assert "Warning" not in done.stderr
    assert hpc_dasgd.open_run(program.folder / "run").status == "running"
    done = program(None, "export", "run", "x.npz")
    assert (done.returncode, done.stdout) == (0, "parameters: x.npz, of the newest checkpoints\n")
    shutil.rmtree(program.folder / "run" / "checkpoint")
    assert_refused(program(None, "export", "run", "x.npz"), "run has no final parameters", "no good checkpoint")


def is_running(pid):
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def wait_until(condition):
    end_s = time.monotonic() + TIMEOUT_S
    while not condition():
        assert time.monotonic() < end_s
        time.sleep(0.01)


@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1", "SIGINT"])
def test_a_signal_to_one_rank_stops_all_ranks_and_the_run_can_be_resumed(program, name):
    command = [*program.command(4), "train", "faulty.toml", "--run", "run", "--set", "seed=3"]
    with subprocess.Popen(command, start_new_session=True, **program.options()) as job:
        try:
            wait_until(lambda: len(list(program.folder.glob("pid-*"))) == 4)
            pids = sorted(path.name.removeprefix("pid-") for path in program.folder.glob("pid-*"))
            os.kill(int(pids[2]), signal.Signals[name])
            stdout, stderr = job.communicate(timeout=TIMEOUT_S)
        finally:
            job.kill()
    assert job.returncode == 75, stderr
    lines = stdout.splitlines()
    assert re.fullmatch(rf"stopped by {name}: \d+ gradients on 4 ranks in .*", lines[0])
    run = hpc_dasgd.open_run(program.folder / "run")
    assert run.status == "stopped"
    n_gradients = int(run.counts.sum())
    assert lines[0].split()[3] == str(n_gradients)
    assert len(list((program.folder / "run" / "checkpoint").glob("rank_0000?.?.h5"))) == 8

    again = shlex.split(lines[-1].removeprefix("next: "))
    assert again == ["hpc-dasgd", "train", "faulty.toml", "--set", "seed=3", "--run", "run", "--resume"]
    done = program(3, *again[1:], "--set", f"budget.gradients={n_gradients + 100}")
    assert done.returncode == 0, done.stderr
    run = hpc_dasgd.open_run(program.folder / "run")
    assert (run.status, len(run.generations)) == ("complete", 2)
    assert run.counts.sum() >= n_gradients + 100


def test_interrupting_the_launcher_ends_all_ranks(program):
    command = [*program.command(4), "train", "faulty.toml", "--run", "run"]
    with subprocess.Popen(command, start_new_session=True, **program.options()) as job:
        try:
            wait_until(lambda: len(list(program.folder.glob("pid-*"))) == 4)
            job.send_signal(signal.SIGINT)
            job.communicate(timeout=TIMEOUT_S)
        finally:
            job.kill()
    assert job.returncode != 0  # 75, except with Open MPI, whose launcher kills the ranks that it interrupts
    pids = [path.name.removeprefix("pid-") for path in program.folder.glob("pid-*")]
    wait_until(lambda: not any(map(is_running, pids)))
    assert hpc_dasgd.open_run(program.folder / "run").status in ("running", "stopped")
