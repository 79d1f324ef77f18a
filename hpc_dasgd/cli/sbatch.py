"""The batch script that trains as a job of SLURM, however often the job is stopped and started again."""

import re
import shlex
from collections.abc import Iterable
from dataclasses import dataclass

from hpc_dasgd.config.rules import POSITIVE_INTEGER, Rule, one_of
from hpc_dasgd.config.settings import Config
from hpc_dasgd.errors import ConfigError

# What ``srun --mpi`` each MPI needs; "site" takes what the site has set.
PMI = {"mpich": "pmi2", "intel": "pmi2", "openmpi": "pmix", "cray": "cray_shasta", "site": None}

WAIT_S = 10  # for the other ranks, after the first one ended
NOTICE_S = 120  # from the signal to the time limit; SLURM may send it up to a minute earlier

_WORD = re.compile(r"[\w.,@:+/-]+", re.ASCII)
_SEEDS = re.compile(r"\d+(-\d+(:\d+)?)?(,\d+(-\d+(:\d+)?)?)*(%\d+)?", re.ASCII)
_TIME = re.compile(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?", re.ASCII)


def _seconds(time: str) -> int:
    """Read a time limit as SLURM does; 0 where it is none."""
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
    "a time of SLURM (minutes, H:M:S or D-H:M:S) of more than 3 minutes, of which stopping takes 2",
    lambda value: _seconds(value) > NOTICE_S + 60,
)
_NAME = Rule("a word of letters, digits and _ . , @ : + / -", lambda value: bool(_WORD.fullmatch(value)))
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
    "environment": Rule("a folder, in one line", lambda value: value != "" and value.isprintable()),
}


@dataclass(frozen=True, kw_only=True)
class Job:
    """What to ask SLURM for; None where the site's default will do.

    Raises
    ------
    ConfigError
        For a value that SLURM would not take.
    """

    nodes: int
    ranks_per_node: int | None = None  # default: one for each GPU, else one
    cores_per_rank: int = 1
    gpus_per_node: int | None = None
    time: str = "01:00:00"
    mpi: str = "site"
    partition: str | None = None
    account: str | None = None
    array: str | None = None  # the seeds of a job array
    modules: tuple[str, ...] = ()
    environment: str | None = None  # the folder that has hpc-dasgd in its bin
    requeue: bool = True

    def __post_init__(self):
        for name, rule in _RULES.items():
            if getattr(self, name) is not None:
                rule.check(name, getattr(self, name))
        for module in self.modules:
            _NAME.check("module", module)


def script(path: str, config: Config, job: Job, overrides: Iterable[str] = ()) -> str:
    """Return the text of the batch script.

    The same script serves the first start and all others: its run directory is named after the job, which
    keeps its number when SLURM starts it again, and ``train --resume`` begins a run where there is none.

    Parameters
    ----------
    path : str
        Settings file, as seen from the folder in which ``sbatch`` is called.
    config : Config
        What `path` holds, with `overrides`.
    job : Job
    overrides : iterable of str
        ``section.key=value`` each, for ``--set``.

    Raises
    ------
    ConfigError
        If `job` and the device of `config` do not go together.
    """
    _check_device(config.device.kind, job.gpus_per_node)
    step = _step(path, job, overrides, config.exchange.survive)
    parts = (_directives(config.name, job), _surroundings(config.name, job), step, _end(job))
    return "#!/bin/bash\n" + "\n\n".join("\n".join(lines) for lines in parts) + "\n"


def _check_device(kind: str, gpus_per_node: int | None) -> None:
    if gpus_per_node and kind == "cpu":
        raise ConfigError(f'`device.kind` must be "gpu" or "auto" with `gpus_per_node` {gpus_per_node}, got "cpu"')
    if gpus_per_node is None and kind == "gpu":
        raise ConfigError('`gpus_per_node` must be set with `device.kind` "gpu"')


def _directives(name: str, job: Job) -> list[str]:
    """What ``sbatch`` reads, which has its own rules of quoting: no value here needs quotes."""
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
        "# Before the time is over the ranks write checkpoints and stop. The signal goes to them; with a B: in front",
        "# it would go to this shell alone.",
        f"#SBATCH --signal=USR1@{NOTICE_S}",
    ]
    if not job.requeue:
        return [*lines, "#SBATCH --no-requeue"]
    return [
        *lines,
        "# Then, or when a node has failed, the job goes back into the queue, and later on with its run.",
        "#SBATCH --requeue",
        "#SBATCH --open-mode=append",
    ]


def _surroundings(name: str, job: Job) -> list[str]:
    lines = ["set -e"]
    if job.modules:
        lines.append(shlex.join(["module", "load", *job.modules]))
    if job.environment is not None:
        lines.append(f"export PATH={shlex.quote(job.environment)}/bin:$PATH")
    lines.append(f"export OMP_NUM_THREADS={job.cores_per_rank}  # of a rank: more would share cores with other ranks")
    run = shlex.quote(f"runs/{name}")
    if job.array is None:
        lines.append(f"run=${{1:-{run}-$SLURM_JOB_ID}}  # or that of an earlier job: sbatch SCRIPT RUN")
    else:
        lines.append(f"run={run}-$SLURM_ARRAY_JOB_ID-seed$SLURM_ARRAY_TASK_ID")
    return lines


def _step(path: str, job: Job, overrides: Iterable[str], survive: bool) -> list[str]:
    wait_s = 0 if survive else WAIT_S  # 0: for ever
    lines = [
        f"# When a rank dies the others are ended {WAIT_S} s later: there are checkpoints to go on from. (At once, as",
        "# by --kill-on-bad-exit=1, would also end those that are about to exit with 75 or 2 themselves.)",
    ]
    if survive:
        lines = ["# When a rank dies the others go on."]
    if job.gpus_per_node:
        lines += [
            "# Each rank sees all GPUs of its node and takes one by its number there, without --gpu-bind.",
        ]
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
    lines = ["# 75: stopped, with checkpoints to go on from."]
    if not job.requeue:
        return [*lines, '[ "$status" != 75 ] || echo "to go on: sbatch SCRIPT $run"', 'exit "$status"']
    job_id = '"$SLURM_JOB_ID"'
    if job.array is not None:
        lines.append("# To one of the array SLURM_JOB_ID is the number of the array, and would requeue all of it.")
        job_id = '"${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID"'
    return [*lines, f'[ "$status" != 75 ] || exec scontrol requeue {job_id}', 'exit "$status"']
