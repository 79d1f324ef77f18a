"""Tests of batch scripts: what SLURM, the shell and the program read in them."""

import re
import shlex
import subprocess
from pathlib import Path

import pytest

from hpc_dasgd.cli.main import main
from hpc_dasgd.cli.sbatch import Job, script
from hpc_dasgd.config.settings import load_config
from hpc_dasgd.errors import ConfigError

SCRIPTS = Path(__file__).parents[3] / "jobs" / "slurm"
SETTINGS = {"name": "digits", "data": {"path": "digits"}, "budget": {"gradients": 100}}
NASTY = 'it\'s "$HOME" `date` \\ #1 {x} * ;&|'


def directives(text):
    """Return the options that ``sbatch`` reads, each of which appears once."""
    found = re.findall(r"^#SBATCH --([a-z-]+)(?:=(\S+))?$", text, re.MULTILINE)
    assert len(found) == len(dict(found)) == text.count("#SBATCH")
    return dict(found)


def step(text):
    """Return the options of the ``srun`` command, and the command that it starts."""
    line = next(line for line in text.replace("\\\n", "").splitlines() if line.startswith("srun"))
    words = shlex.split(line.removesuffix("|| status=$?"))
    at = words.index("hpc-dasgd")
    return words[1:at], words[at:]


def script_of(overrides=(), settings=SETTINGS, path="jobs/digits.toml", **job):
    return script(path, load_config(settings, overrides), Job(**{"nodes": 2} | job), overrides)


def test_a_script_contains_the_resources_of_the_job():
    text = script_of(
        ranks_per_node=4, cores_per_rank=3, time="1-12:00:00", partition="long", account="p_1", mpi="mpich"
    )
    assert directives(text) == {
        "job-name": "digits",
        "partition": "long",
        "account": "p_1",
        "nodes": "2",
        "ntasks-per-node": "4",
        "cpus-per-task": "3",
        "time": "1-12:00:00",
        "output": "%x-%j.out",
        "signal": "USR1@120",
        "requeue": "",
        "open-mode": "append",
    }
    options, command = step(text)
    assert options == ["--mpi=pmi2", "--cpus-per-task=3", "--cpu-bind=cores", "--kill-on-bad-exit=0", "--wait=10"]
    assert command == ["hpc-dasgd", "train", "jobs/digits.toml", "--run", "$run", "--resume"]
    assert "\nexport OMP_NUM_THREADS=3 " in text


def test_srun_does_not_end_the_other_ranks_if_deaths_are_survived():
    options, _ = step(script_of(["exchange.survive=true"]))
    assert options[-2:] == ["--kill-on-bad-exit=0", "--wait=0"]


PMI = {"mpich": ["pmi2"], "intel": ["pmi2"], "openmpi": ["pmix"], "cray": ["cray_shasta"], "site": []}


@pytest.mark.parametrize("mpi", PMI)
def test_srun_uses_the_process_management_of_the_mpi_library(mpi):
    options, _ = step(script_of(mpi=mpi))
    assert [word for word in options if word.startswith("--mpi")] == [f"--mpi={pmi}" for pmi in PMI[mpi]]


def test_options_that_are_not_given_are_left_to_the_site():
    asked = directives(script_of())
    assert asked["ntasks-per-node"] == "1"
    assert not {"partition", "account", "array", "gpus-per-node"} & set(asked)
    assert "module load" not in script_of()


def test_a_node_with_gpus_has_one_rank_per_gpu():
    asked = directives(script_of(gpus_per_node=4))
    assert (asked["gpus-per-node"], asked["ntasks-per-node"]) == ("4", "4")
    assert directives(script_of(gpus_per_node=4, ranks_per_node=8))["ntasks-per-node"] == "8"


@pytest.mark.parametrize(("device", "gpus", "key"), [("cpu", 4, "`device.kind`"), ("gpu", None, "`gpus_per_node`")])
def test_gpus_that_contradict_the_device_are_refused(device, gpus, key):
    with pytest.raises(ConfigError, match=key):
        script_of([f"device.kind={device}"], gpus_per_node=gpus)


# Scripts executed by bash, with programs in place of those of SLURM that record their arguments.

SRUN = '#!/bin/bash\nprintf "%s\\n" "$@" >> srun.txt\nprintf "%s\\n" "$PATH" >> path.txt\nexit "${STATUS:-0}"\n'
SCONTROL = '#!/bin/bash\nprintf "%s\\n" "$@" >> scontrol.txt\n'


def bash(folder, text, *arguments, status=0, **environment):
    """Execute a script as job 7 whose steps end with `status`; return exit status, recorded arguments and output."""
    (folder / "bin").mkdir()
    for name, program in {"srun": SRUN, "scontrol": SCONTROL}.items():
        (folder / "bin" / name).write_text(program)
        (folder / "bin" / name).chmod(0o755)
    environment |= {"PATH": f"{folder / 'bin'}:/usr/bin:/bin", "SLURM_JOB_ID": "7", "STATUS": str(status)}
    command = ["bash", "-c", text, "job.sbatch", *arguments]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=60)
    assert done.stderr == ""
    called = {path.stem: path.read_text().splitlines() for path in folder.glob("*.txt")}
    return done.returncode, called, done.stdout


def test_paths_and_values_reach_the_program_unchanged(tmp_path):
    overrides = [f"data.path={NASTY}", 'objective.note=["a b", "c"]']
    settings = SETTINGS | {"name": NASTY}
    text = script_of(overrides, settings, path=f"my jobs/{NASTY}.toml", environment=f"/home/{NASTY}")
    assert directives(text)["job-name"] == re.sub(r"[^\w+.-]", "_", NASTY)
    status, called, _ = bash(tmp_path, text)
    assert status == 0
    assert called["srun"][called["srun"].index("hpc-dasgd") :] == [
        *("hpc-dasgd", "train", f"my jobs/{NASTY}.toml", "--run", f"runs/{NASTY}-7", "--resume"),
        *("--set", overrides[0], "--set", overrides[1]),
    ]
    assert called["path"][0].startswith(f"/home/{NASTY}/bin:")


def test_a_run_of_an_earlier_job_can_be_resumed(tmp_path):
    _, called, _ = bash(tmp_path, script_of(), "runs/an earlier-3")
    assert called["srun"][-3:] == ["--run", "runs/an earlier-3", "--resume"]


def test_each_job_of_an_array_has_its_own_seed_and_run(tmp_path):
    text = script_of(["seed=1"], array="0-9%2")
    assert directives(text)["array"] == "0-9%2"
    assert directives(text)["output"] == "%x-%A_%a.out"
    ids = {"SLURM_ARRAY_JOB_ID": "5", "SLURM_ARRAY_TASK_ID": "9"}
    status, called, _ = bash(tmp_path, text, status=75, **ids)
    assert called["srun"][-7:] == ["--run", "runs/digits-5-seed9", "--resume", "--set", "seed=1", "--set", "seed=9"]
    assert (status, called["scontrol"]) == (0, ["requeue", "5_9"])


def test_a_job_that_was_stopped_is_requeued(tmp_path):
    status, called, _ = bash(tmp_path, script_of(), status=75)
    assert (status, called["scontrol"]) == (0, ["requeue", "7"])


@pytest.mark.parametrize("status", [0, 1, 2, 137])
def test_any_other_status_becomes_that_of_the_job(tmp_path, status):
    ended, called, _ = bash(tmp_path, script_of(), status=status)
    assert ended == status
    assert "scontrol" not in called


def test_without_requeue_the_job_prints_how_to_resume(tmp_path):
    text = script_of(requeue=False)
    assert "no-requeue" in directives(text)
    status, called, said = bash(tmp_path, text, status=75)
    assert (status, said) == (75, "to resume: sbatch SCRIPT runs/digits-7\n")
    assert "scontrol" not in called


def test_modules_are_loaded_before_the_environment():
    text = script_of(modules=("gcc/13", "openmpi/5.0"), environment="/home/me/dasgd")
    assert "\nmodule load gcc/13 openmpi/5.0\nexport PATH=/home/me/dasgd/bin:$PATH\n" in text


# Values that SLURM does not accept.


@pytest.mark.parametrize("time", ["4", "3:01", "0:04:00", "1-0", "0-0:04", "2-00:00:00"])
def test_time_formats_of_slurm_are_accepted(time):
    assert directives(script_of(time=time))["time"] == time


@pytest.mark.parametrize(
    ("name", "values"),
    {
        "nodes": [0, -1, 1.5, True],
        "ranks_per_node": [0],
        "cores_per_rank": [0],
        "gpus_per_node": [0, -1],
        "time": ["", "3", "3:00", "0:03:00", "0-0:03", "1h", "1:0:0:0", "-5", "4\n", "1-", "٤"],
        "mpi": ["", "MPICH", "pmi2"],
        "partition": ["", "a b", "a\n#SBATCH --nodes=9", "'a'", "ü"],
        "account": ["", "a b"],
        "array": ["", "a", "1-", "0-9%", "1,,2", "0-9 ", "-1", "1:2"],
        "modules": [("gcc", "a b"), ("",), ("$(date)",)],
        "environment": ["", "/a\n/b"],
    }.items(),
)
def test_bad_values_are_refused(name, values):
    for value in values:
        with pytest.raises(ConfigError, match=rf"^`{name.removesuffix('s') if name == 'modules' else name}` must be "):
            script_of(**{name: value})


# The command.


def test_the_command_prints_the_script(tmp_path, capsys):
    path = tmp_path / "it's mine.toml"
    path.write_text('name = "x"\n[budget]\ngradients = 5\n')
    options = ["--nodes", "3", "--module", "a", "--module", "b", "--array", "0-4", "--no-requeue", "--set", "seed=2"]
    assert main(["slurm", str(path), *options]) == 0
    job = {"nodes": 3, "modules": ("a", "b"), "array": "0-4", "requeue": False}
    assert capsys.readouterr().out == script_of(["seed=2"], path, path=str(path), **job)


@pytest.mark.parametrize(
    ("options", "fragment"),
    [
        ([], "--nodes"),
        (["--nodes", "0"], "--nodes: must be a positive integer, got '0'"),
        (["--nodes", "1", "--time", "2"], "`time` must be a time of SLURM"),
        (["--nodes", "1", "--mpi", "lam"], "`mpi` must be one of"),
        (["--nodes", "1", "--array", "x"], "`array` must be seeds"),
        (["--nodes", "1", "--set", "optimizer.stepsize=-1"], "`optimizer.stepsize` must be"),
        (["--nodes", "1", "--set", "device.kind=gpu"], "`gpus_per_node` must be set"),
    ],
)
def test_the_command_refuses_wrong_options_and_settings(tmp_path, capsys, options, fragment):
    path = tmp_path / "settings.toml"
    path.write_text("[budget]\ngradients = 5\n")
    assert main(["slurm", str(path), *options]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("hpc-dasgd: ")
    assert err.count("\n") == 1
    assert fragment in err


COMMANDS = re.findall(r"^    hpc-dasgd (.+) > jobs/slurm/(.+)$", (SCRIPTS / "README.md").read_text(), re.MULTILINE)


def test_the_readme_has_a_command_for_each_script():
    assert {name for _, name in COMMANDS} == {path.name for path in SCRIPTS.glob("*.sbatch")}


@pytest.mark.parametrize(("arguments", "name"), COMMANDS, ids=[name for _, name in COMMANDS])
def test_each_script_is_the_output_of_its_command(arguments, name, monkeypatch, capsys):
    monkeypatch.chdir(SCRIPTS.parents[1])
    assert main(shlex.split(arguments)) == 0
    assert capsys.readouterr().out == (SCRIPTS / name).read_text()
