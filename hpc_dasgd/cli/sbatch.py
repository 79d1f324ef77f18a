"""Batch scripts for SLURM: jobs that may be stopped and started again any number of times."""

import re
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from hpc_dasgd.config.rules import POSITIVE_INTEGER, Rule, one_of
from hpc_dasgd.config.settings import Config
from hpc_dasgd.errors import ConfigError

# Value of ``srun --mpi`` for each MPI library; None: the default of the site.
PMI = {"mpich": "pmi2", "intel": "pmi2", "openmpi": "pmix", "cray": "cray_shasta", "site": None}

WAIT_S = 10  # time after which srun ends the remaining ranks when the first one has ended
NOTICE_S = 120  # time from the signal to the time limit; SLURM may send the signal up to a minute earlier

_WORD = re.compile(r"[\w.,@:+/-]+", re.ASCII)
_SEEDS = re.compile(r"\d+(-\d+(:\d+)?)?(,\d+(-\d+(:\d+)?)?)*(%\d+)?", re.ASCII)
_TIME = re.compile(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?", re.ASCII)


def _seconds(time: str) -> int:
    """Return the seconds of a time limit in the formats of SLURM; 0 if the text has none of them."""
    match = _TIME.fullmatch(time)
    if match is None:
        return 0
    days, *parts = match.groups()
    numbers = [int(part) for part in parts if part is not None]
    if days is None and len(numbers) < 3:
        numbers.insert(0, 0)  # minutes, or minutes and seconds
    hours, minutes, seconds = [*numbers, 0, 0][:3]
    return ((int(days or 0) * 24 + hours) * 60 + minutes) * 60 + seconds


_TIME_LIMIT = Rule(
    "a time of SLURM (minutes, H:M:S or D-H:M:S) of more than 3 minutes, since the job is stopped 2 minutes before it",
    lambda value: _seconds(value) > NOTICE_S + 60,
)
_NAME = Rule("a word of letters, digits and the characters _ . , @ : + / -", lambda value: bool(_WORD.fullmatch(value)))
_RULES = {
    "nodes": POSITIVE_INTEGER,
    "ranks_per_node": POSITIVE_INTEGER,
    "cores_per_rank": POSITIVE_INTEGER,
    "gpus_per_node": POSITIVE_INTEGER,
    "time": _TIME_LIMIT,
    "mpi": one_of(*PMI),
    "partition": _NAME,
    "account": _NAME,
    "array": Rule("seeds such as 0-9, 1,5,7 or 0-99%10", lambda value: bool(_SEEDS.fullmatch(value))),
    "environment": Rule("a directory name without line breaks", lambda value: value != "" and value.isprintable()),
}


@dataclass(frozen=True, kw_only=True)
class Job:
    """Resources and options of a job.

    Attributes
    ----------
    nodes : int
        Number of nodes.
    ranks_per_node : int, optional
        By default one per GPU, and one if there are no GPUs.
    cores_per_rank : int
        Number of cores per rank.
    gpus_per_node : int, optional
        Number of GPUs per node; none by default.
    time : str
        Time limit of each start, in a format of SLURM.
    mpi : str
        MPI library, a key of `PMI`.
    partition, account : str, optional
        Partition and account of SLURM; by default those of the site and of the user.
    array : str, optional
        Seeds of a job array, such as ``"0-9"``.
    modules : sequence of str
        Environment modules to load.
    environment : str, optional
        Directory of a Python environment, with the program at ``bin/hpc-dasgd``.
    requeue : bool
        Whether a job that was stopped is queued again.

    Raises
    ------
    ConfigError
        For a value that SLURM does not accept.
    """

    nodes: int
    ranks_per_node: int | None = None
    cores_per_rank: int = 1
    gpus_per_node: int | None = None
    time: str = "01:00:00"
    mpi: str = "site"
    partition: str | None = None
    account: str | None = None
    array: str | None = None
    modules: Sequence[str] = ()
    environment: str | None = None
    requeue: bool = True

    def __post_init__(self) -> None:
        for name, rule in _RULES.items():
            if getattr(self, name) is not None:
                rule.check(name, getattr(self, name))
        for module in self.modules:
            _NAME.check("module", module)


def script(path: str, config: Config, job: Job, overrides: Iterable[str] = ()) -> str:
    """Return the text of the batch script.

    The same script is used for the first start and for all later ones: its run directory is named after the number of
    the job, which stays the same when SLURM starts the job again, and ``train --resume`` starts a new run if there is
    none.

    Parameters
    ----------
    path : str
        Settings file, relative to the directory in which ``sbatch`` is called.
    config : Config
        The settings in `path`, with `overrides`.
    job : Job
    overrides : iterable of str
        Values of ``--set``, ``section.key=value`` each.

    Raises
    ------
    ConfigError
        If `job` and the device of `config` contradict each other.
    """
    _check_device(config.device.kind, job.gpus_per_node)
    step = _step(path, job, overrides, config.exchange.survive)
    parts = (_directives(config.name, job), _preparation(config.name, job), step, _end(job))
    return "#!/bin/bash\n" + "\n\n".join("\n".join(lines) for lines in parts) + "\n"


def _check_device(kind: str, gpus_per_node: int | None) -> None:
    """Raise `ConfigError` if the device of the settings and the GPUs of the job contradict each other."""
    if gpus_per_node and kind == "cpu":
        raise ConfigError(f'`device.kind` must be "gpu" or "auto" with `gpus_per_node` {gpus_per_node}, got "cpu"')
    if gpus_per_node is None and kind == "gpu":
        raise ConfigError('`gpus_per_node` must be set with `device.kind` "gpu"')


def _directives(name: str, job: Job) -> list[str]:
    """Return the directives of ``sbatch``, which has its own quoting rules; no value here needs quotes."""
    values = {
        "job-name": re.sub(r"[^A-Za-z0-9_.+-]", "_", name),
        "partition": job.partition,
        "account": job.account,
        "nodes": job.nodes,
        "ntasks-per-node": job.ranks_per_node or job.gpus_per_node or 1,
        "cpus-per-task": job.cores_per_rank,
        "gpus-per-node": job.gpus_per_node,
        "time": job.time,
        "array": job.array,
        "output": "%x-%j.out" if job.array is None else "%x-%A_%a.out",
    }
    lines = [f"#SBATCH --{option}={value}" for option, value in values.items() if value is not None]
    lines += [
        "# Before the time limit SLURM sends a signal, on which the ranks write checkpoints and stop. It goes to the",
        "# ranks; with the prefix B: it would go only to this shell.",
        f"#SBATCH --signal=USR1@{NOTICE_S}",
    ]
    if not job.requeue:
        return [*lines, "#SBATCH --no-requeue"]
    return [
        *lines,
        "# A job that was stopped, or whose node has failed, is queued again, and then resumes its run.",
        "#SBATCH --requeue",
        "#SBATCH --open-mode=append",
    ]


def _preparation(name: str, job: Job) -> list[str]:
    """Return the commands that set up the environment and name the run directory."""
    lines = ["set -e"]
    if job.modules:
        lines.append(shlex.join(["module", "load", *job.modules]))
    if job.environment is not None:
        lines.append(f"export PATH={shlex.quote(job.environment)}/bin:$PATH")
    lines.append(f"export OMP_NUM_THREADS={job.cores_per_rank}  # threads per rank; with more, ranks would share cores")
    run = shlex.quote(f"runs/{name}")
    if job.array is None:
        lines.append(f"run=${{1:-{run}-$SLURM_JOB_ID}}  # to resume a run of an earlier job: sbatch SCRIPT RUN")
    else:
        lines.append(f"run={run}-$SLURM_ARRAY_JOB_ID-seed$SLURM_ARRAY_TASK_ID")
    return lines


def _step(path: str, job: Job, overrides: Iterable[str], survive: bool) -> list[str]:
    """Return the ``srun`` command with its comments."""
    wait_s = 0 if survive else WAIT_S  # 0: no limit
    lines = [
        f"# If a rank dies, srun ends the others {WAIT_S} s later; the run can be resumed from its checkpoints.",
        "# (--kill-on-bad-exit=1 would end them immediately, even if they are about to exit with status 75 or 2.)",
    ]
    if survive:
        lines = ["# If a rank dies, the others continue."]
    if job.gpus_per_node:
        lines.append(
            "# Each rank sees all GPUs of its node and uses the one of its local rank; --gpu-bind is not needed."
        )
    pmi = [] if PMI[job.mpi] is None else [f"--mpi={PMI[job.mpi]}"]
    cores = [f"--cpus-per-task={job.cores_per_rank}", "--cpu-bind=cores"]
    command = [
        shlex.join(["srun", *pmi, *cores, "--kill-on-bad-exit=0", f"--wait={wait_s}"]),
        f'{shlex.join(["hpc-dasgd", "train", path])} --run "$run" --resume',
        *(shlex.join(["--set", override]) for override in overrides),
        *([] if job.array is None else ['--set seed="$SLURM_ARRAY_TASK_ID"']),
        "|| status=$?",
    ]
    return [*lines, "status=0", " \\\n    ".join(command)]


def _end(job: Job) -> list[str]:
    """Return the commands after training."""
    lines = ["# Status 75: training was stopped and has written checkpoints."]
    if not job.requeue:
        return [*lines, '[ "$status" != 75 ] || echo "to resume: sbatch SCRIPT $run"', 'exit "$status"']
    job_id = '"$SLURM_JOB_ID"'
    if job.array is not None:
        lines.append("# For one job of the array SLURM_JOB_ID is the number of the array, and would requeue all jobs.")
        job_id = '"${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID"'
    return [*lines, f'[ "$status" != 75 ] || exec scontrol requeue {job_id}', 'exit "$status"']
