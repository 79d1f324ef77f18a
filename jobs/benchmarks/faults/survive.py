"""Which MPI, with which options of its launcher, lets the ranks survive that die? Kill some and see.

    python -m jobs.benchmarks.faults.survive results/faults/survive-NAME

trains ``jobs/digits.toml`` on 4 ranks for `BUDGET_S` seconds, again and again, with the ``mpiexec`` beside this Python.
At a moment drawn at random a rank drawn at random, or two, are killed with signal 9. It is told whether the others
finish, with equal replicas and a good result, and how soon they notice; and how soon the job ends with the options
that a launcher has by default. Writes ``results/faults/survive-NAME.json`` (every trial) and ``.md``.
"""

import argparse
import hashlib
import json
import os
import platform
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from jobs.benchmarks.mpiexec import ENVIRONMENT, MPIEXEC

N_RANKS, BUDGET_S, LONGEST_S = 4, 1.5, 30.0
GOOD_ACCURACY = 0.9
ROOT = Path(__file__).parents[3]
CONFIG = ROOT / "jobs" / "digits.toml"
# A shell between launcher and rank: the launcher of MPICH kills all ranks when one of its own children ends by a
# signal, whatever its options say, and sends SIGUSR1 to the others.
SHIELD = ("sh", "-c", 'trap "" USR1; "$@"; exit $?', "sh")
# By MPI, options of the launcher, what stands before the rank's program, and the trials: overlay, killed, how many.
FULL = [("complete", 1, 1.0), ("tree", 1, 1.0), ("ring", 1, 1.0), ("complete", 2, 0.25), ("ring", 2, 0.25)]
FEW, ONE = [("complete", 1, 0.25)], [("complete", 1, 1.0)]
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
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path)
    parser.add_argument("--trials", type=int, default=20, help="of the main cases (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    library = subprocess.run(
        [sys.executable, "-c", "from mpi4py import MPI; print(MPI.Get_library_version())"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    library = " ".join(library.split("\n")[0].strip("\0").split()).partition(",")[0]
    draw, found = random.Random(options.seed), []
    for launcher, shield, trials in next(CASES[name] for name in CASES if library.startswith(name)):
        for overlay, n_killed, share in trials:
            for number in range(max(1, round(share * options.trials))):
                victims = sorted(draw.sample(range(N_RANKS), n_killed))
                moments_s = [round(draw.uniform(0.25, 0.75) * BUDGET_S, 3) for _ in victims]
                case = {"launcher": " ".join(launcher), "shielded": bool(shield), "overlay": overlay}
                case |= {"trial": number, "killed": victims, "after_s": moments_s}
                with tempfile.TemporaryDirectory() as folder:
                    found.append(
                        case
                        | trial(Path(folder), launcher, shield, overlay, dict(zip(victims, moments_s, strict=True)))
                    )
                write(options.output, library, found)


def trial(folder, launcher, shield, overlay, victims):
    """One run: what became of the ranks, and when, in seconds after the last kill."""
    command = [MPIEXEC, *launcher, "-n", str(N_RANKS), *shield]
    command += [
        sys.executable,
        "-m",
        "jobs.benchmarks.faults.survive",
        "--rank",
        str(folder),
        overlay,
        json.dumps(victims),
    ]
    lines = []
    with subprocess.Popen(
        command, env=ENVIRONMENT, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    ) as launched:
        reader = threading.Thread(target=lambda: lines.extend((time.time(), line) for line in launched.stderr))
        reader.start()
        try:
            status = launched.wait(LONGEST_S)
        except subprocess.TimeoutExpired:
            status = "hung"
            launched.terminate()
        ended_s = time.time()
        reader.join()
    killed_s = max((float(path.read_text()) for path in folder.glob("killed-*")), default=ended_s)
    ends = [json.loads(path.read_text()) for path in sorted(folder.glob("end-*.json"))]
    noticed = [when_s - killed_s for when_s, line in lines if " died (" in line]
    good = [end for end in ends if end["died"] == sorted(victims) and end["accuracy"] > GOOD_ACCURACY]
    return {
        "launcher_status": status,
        "finished": len(ends),
        "survived": status != "hung"
        and len(good) == N_RANKS - len(victims)
        and len({end["parameters"] for end in ends}) == 1,
        "accuracy": min((end["accuracy"] for end in ends), default=None),
        "replicas_equal": len({end["parameters"] for end in ends}) == 1 if ends else None,
        "noticed_s": round(max(noticed), 2) if noticed else None,
        "ended_s": round(ended_s - killed_s, 2),
        "errors": "".join(line for _, line in lines)[-500:],
    }


def rank(folder, overlay, victims):
    """The program of a rank."""
    import hpc_dasgd
    from hpc_dasgd.runtime import mpi

    comm = mpi.comm_world()
    from hpc_dasgd.data.dataset import open_dataset
    from hpc_dasgd.objectives.mlp import mlp

    objective, started = mlp(open_dataset("digits", "float32"), hidden=[128, 128]), threading.Event()
    loss_and_gradient = objective.loss_and_gradient

    def starting(*arguments):
        started.set()
        return loss_and_gradient(*arguments)

    objective.loss_and_gradient = starting
    after_s = {int(victim): moment_s for victim, moment_s in json.loads(victims).items()}.get(comm.rank)
    run = Path(folder, "run")

    def die():
        started.wait()  # deaths before the loop are not survived
        time.sleep(after_s)
        Path(folder, f"killed-{comm.rank}").write_text(f"{time.time()}")
        os.kill(os.getpid(), signal.SIGKILL)

    if after_s is not None:
        threading.Thread(target=die, daemon=True).start()
    overrides = ["exchange.survive=true", f"exchange.topology={overlay}", f"budget.seconds={BUDGET_S}"]
    overrides += ["budget.gradients=10000000"]
    result = hpc_dasgd.train(CONFIG, objective, overrides=overrides, run=run, progress=False)
    end = {"died": list(result.died), "accuracy": result.accuracy, "gradients": result.gradients}
    end["parameters"] = hashlib.sha256(result.parameters.tobytes()).hexdigest()
    Path(folder, f"end-{comm.rank}.json").write_text(json.dumps(end))


def write(output, library, found):
    output.parent.mkdir(parents=True, exist_ok=True)
    machine = f"{os.cpu_count()} cores, {platform.system()} {platform.release()}"
    text = json.dumps({"mpi": library, "machine": machine, "n_ranks": N_RANKS, "trials": found}, indent=1)
    output.with_suffix(".json").write_text(text + "\n")
    lines = [
        "# Survival",
        "",
        f"Made by `jobs/benchmarks/faults/survive.py`: {library}; one machine, {machine}; {N_RANKS} ranks, digits,"
        f" {BUDGET_S:g} s.",
        "Survived: all other ranks ended with equal replicas, an accuracy above"
        f" {GOOD_ACCURACY}, and knew who died. Seconds are medians and extremes, after the kill.",
        "",
        "| options of `mpiexec` | overlay | killed | survived | accuracy | noticed after s | job ended after s |",
        "|---" * 7 + "|",
    ]
    cases = {}
    for each in found:
        options = each["launcher"] or "none"
        options += ", shell between" if each["shielded"] else ""
        cases.setdefault((options, each["overlay"], len(each["killed"])), []).append(each)
    for (options, overlay, n_killed), trials in cases.items():
        survived = [each for each in trials if each["survived"]]
        cells = [f"`{options}`", overlay, str(n_killed), f"{len(survived)} of {len(trials)}"]
        cells += [spread(survived, "accuracy"), spread(survived, "noticed_s"), spread(trials, "ended_s")]
        lines.append(f"| {' | '.join(cells)} |")
    output.with_suffix(".md").write_text("\n".join(lines) + "\n")


def spread(trials, name):
    values = [each[name] for each in trials if each[name] is not None]
    return f"{statistics.median(values):.3g} [{min(values):.3g}, {max(values):.3g}]" if values else "-"


if __name__ == "__main__":
    if sys.argv[1:2] == ["--rank"]:
        rank(*sys.argv[2:])
    else:
        main()
