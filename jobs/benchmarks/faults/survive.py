"""Find out which MPI and which options of its launcher let the other ranks survive when ranks die.

    python -m jobs.benchmarks.faults.survive results/faults/survive-NAME

trains ``jobs/digits.toml`` repeatedly on 4 ranks for `BUDGET_S` seconds. At random times one random rank, or two, are
killed with SIGKILL. The program records if the other ranks finish, with equal replicas and a good accuracy; how long
they take to notice; and how long the job takes to end with the default options of the launcher. Writes
``results/faults/survive-NAME.json`` (every trial) and ``.md``.
"""

import hashlib
import json
import os
import platform
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from jobs.benchmarks.common import argument_parser, spread_text, table, write_outcome
from jobs.benchmarks.mpiexec import DIGITS, ENVIRONMENT, MPIEXEC, mpi_library

N_RANKS, BUDGET_S, LONGEST_S = 4, 1.5, 30.0
GOOD_ACCURACY = 0.9
# A shell between launcher and rank: the launcher of MPICH kills all ranks if one of its child processes is killed by a
# signal, whatever its options are, and sends SIGUSR1 to the others.
SHIELD = ("sh", "-c", 'trap "" USR1; "$@"; exit $?', "sh")
# Trials: overlay, number of killed ranks, and share of the option ``--trials``.
FULL = [("complete", 1, 1.0), ("tree", 1, 1.0), ("ring", 1, 1.0), ("complete", 2, 0.25), ("ring", 2, 0.25)]
FEW, ONE = [("complete", 1, 0.25)], [("complete", 1, 1.0)]
# For each MPI: options of the launcher, command that runs the program of a rank, and the trials.
CASES = {
    "MPICH": [
        ((), (), FEW),
        (("-disable-auto-cleanup",), (), ONE),
        (("-disable-auto-cleanup",), SHIELD, FULL),
    ],
    "Open MPI": [((), (), FEW), (("--enable-recovery",), (), FULL), (("--with-ft", "ulfm"), (), FEW)],
    "Intel(R) MPI": [((), (), FEW), (("-disable-auto-cleanup",), (), FULL)],
}


def main():
    parser = argument_parser(__doc__)
    parser.add_argument("--trials", type=int, default=20, help="of the main cases (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="(default %(default)s)")
    options = parser.parse_args()
    library, draw, found = mpi_library().partition(",")[0], random.Random(options.seed), []
    for launcher, shield, overlay, n_killed, number in cases(library, options.trials):
        victims = sorted(draw.sample(range(N_RANKS), n_killed))
        moments_s = [round(draw.uniform(0.25, 0.75) * BUDGET_S, 3) for _ in victims]
        case = {"launcher": " ".join(launcher), "shielded": bool(shield), "overlay": overlay}
        case |= {"trial": number, "killed": victims, "after_s": moments_s}
        with tempfile.TemporaryDirectory() as folder:
            command = [MPIEXEC, *launcher, "-n", str(N_RANKS), *shield, sys.executable, "-m", __spec__.name, "--rank"]
            after_s = dict(zip(victims, moments_s, strict=True))
            found.append(case | trial(Path(folder), [*command, folder, overlay, json.dumps(after_s)], victims))
        machine = f"{os.cpu_count()} cores, {platform.system()} {platform.release()}"
        about = {"mpi": library, "machine": machine, "n_ranks": N_RANKS}
        write_outcome(options.output, about | {"trials": found}, text(about, found))


def cases(library: str, n_trials: int):
    """Yield launcher options, shield, overlay, number of killed ranks and number of the trial for all trials."""
    for launcher, shield, trials in next(CASES[name] for name in CASES if library.startswith(name)):
        for overlay, n_killed, share in trials:
            for number in range(max(1, round(share * n_trials))):
                yield launcher, shield, overlay, n_killed, number


def trial(folder: Path, command: list[str], victims: list[int]) -> dict:
    """Run once; return the results of the ranks, with times in seconds after the last kill."""
    status, lines, ended_s = launch(command)
    killed_s = max((float(path.read_text()) for path in folder.glob("killed-*")), default=ended_s)
    ends = [json.loads(path.read_text()) for path in sorted(folder.glob("end-*.json"))]
    noticed = [time_s - killed_s for time_s, line in lines if " died (" in line]
    good = [end for end in ends if end["died"] == victims and end["accuracy"] > GOOD_ACCURACY]
    replicas_equal = len({end["parameters"] for end in ends}) == 1
    return {
        "launcher_status": status,
        "finished": len(ends),
        "survived": status != "hung" and len(good) == N_RANKS - len(victims) and replicas_equal,
        "accuracy": min((end["accuracy"] for end in ends), default=None),
        "replicas_equal": replicas_equal if ends else None,
        "noticed_s": round(max(noticed), 2) if noticed else None,
        "ended_s": round(ended_s - killed_s, 2),
        "errors": "".join(line for _, line in lines)[-500:],
    }


def launch(command: list[str]) -> tuple[int | str, list[tuple[float, str]], float]:
    """Return the exit status ("hung" after `LONGEST_S`), the lines of standard error with times, and the end time."""
    lines = []
    streams = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, env=ENVIRONMENT, **streams) as launched:
        reader = threading.Thread(target=lambda: lines.extend((time.time(), line) for line in launched.stderr))
        reader.start()
        try:
            status = launched.wait(LONGEST_S)
        except subprocess.TimeoutExpired:
            status = "hung"
            launched.terminate()
        ended_s = time.time()
        reader.join()
    return status, lines, ended_s


def rank(folder: str, overlay: str, after_s: str) -> None:
    """Train on one rank, which kills itself if `after_s`, a JSON object of seconds by rank, contains it."""
    import hpc_dasgd
    from hpc_dasgd.data.dataset import open_dataset
    from hpc_dasgd.objectives.mlp import mlp
    from hpc_dasgd.runtime import mpi

    comm = mpi.comm_world()
    objective = mlp(open_dataset("digits", "float32"), hidden=[128, 128])
    own_after_s = json.loads(after_s).get(str(comm.rank))
    if own_after_s is not None:
        die_during_training(objective, own_after_s, Path(folder, f"killed-{comm.rank}"))
    overrides = ["exchange.survive=true", f"exchange.topology={overlay}", f"budget.seconds={BUDGET_S}"]
    overrides += ["budget.gradients=10000000"]
    result = hpc_dasgd.train(DIGITS, objective, overrides=overrides, run=Path(folder, "run"), progress=False)
    end = {"died": list(result.died), "accuracy": result.accuracy, "gradients": result.gradients}
    end["parameters"] = hashlib.sha256(result.parameters.tobytes()).hexdigest()
    Path(folder, f"end-{comm.rank}.json").write_text(json.dumps(end))


def die_during_training(objective, after_s: float, record: Path) -> None:
    """Kill this process `after_s` seconds after its first gradient began; write the time to `record` before."""
    started, loss_and_gradient = threading.Event(), objective.loss_and_gradient

    def compute(*arguments):
        started.set()  # ranks that die before the training loop end the job
        return loss_and_gradient(*arguments)

    def die():
        started.wait()
        time.sleep(after_s)
        record.write_text(f"{time.time()}")
        os.kill(os.getpid(), signal.SIGKILL)

    objective.loss_and_gradient = compute
    threading.Thread(target=die, daemon=True).start()


def text(about: dict, found: list[dict]) -> list[str]:
    """Return the lines of the Markdown page."""
    groups = {}
    for each in found:
        options = (each["launcher"] or "none") + (", shell between" if each["shielded"] else "")
        groups.setdefault((options, each["overlay"], len(each["killed"])), []).append(each)
    rows = []
    for (options, overlay, n_killed), trials in groups.items():
        survived = [each for each in trials if each["survived"]]
        spreads = [spread(survived, "accuracy"), spread(survived, "noticed_s"), spread(trials, "ended_s")]
        rows.append([f"`{options}`", overlay, n_killed, f"{len(survived)} of {len(trials)}", *spreads])
    headings = ["options of `mpiexec`", "overlay", "killed", "survived", "accuracy"]
    return [
        "# Survival",
        "",
        f"Made by `jobs/benchmarks/faults/survive.py`: {about['mpi']}; one machine, {about['machine']}; "
        f"{about['n_ranks']} ranks, digits, {BUDGET_S:g} s.",
        f"Survived: all other ranks ended with equal replicas and an accuracy above {GOOD_ACCURACY}, and reported the",
        "right ranks as dead. Medians, and in brackets the range; seconds are counted from the last kill.",
        "",
        *table([*headings, "noticed after s", "job ended after s"], rows),
    ]


def spread(trials: list[dict], name: str) -> str:
    return spread_text([each[name] for each in trials if each[name] is not None], ".3g")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--rank"]:
        rank(*sys.argv[2:])
    else:
        main()
