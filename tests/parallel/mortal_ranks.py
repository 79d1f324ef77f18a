"""One rank of test_survival: makes integer updates and checks its replica, until it is killed or has finished.

    python mortal_ranks.py FOLDER SCENARIO_AS_JSON

The scenario consists of ``overlay``, ``consistency`` and ``device``; of ``kills`` and ``stops``, which give for a rank
the own update during which it kills itself, or suspends itself for two heartbeat timeouts; and of ``target``, the
number of updates that each rank wants to hold of each rank that is not killed. The outcome is written to
``FOLDER/rank_R.json``.
"""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np

from hpc_dasgd.config.settings import ExchangeConfig
from hpc_dasgd.errors import LeftBehindError
from hpc_dasgd.overlay import topology
from hpc_dasgd.runtime import mpi
from tests.parallel.integer_updates import N_PARAMS, Updates
from tests.parallel.late_device import LateDevice

TIMEOUT_S = 1.5
TREES = {
    "chain": lambda n_ranks: lambda rank: topology.chain(rank, [0] * n_ranks),
    "tree": lambda n_ranks: lambda rank: topology.tree(rank, [0] * n_ranks),
    "complete": lambda n_ranks: None,
}


def held_by(versions, updates):
    return np.arange(N_PARAMS) + sum(each.sum_to(int(version)) for each, version in zip(updates, versions, strict=True))


def suspend_for(seconds):
    subprocess.Popen(["sh", "-c", f"sleep {seconds}; kill -CONT {os.getpid()}"], start_new_session=True)
    os.kill(os.getpid(), signal.SIGSTOP)


def is_yet_to_come(made, *moments):
    """Return True if a rank that is slower than the others has not reached one of its moments yet."""
    return any(isinstance(moment, int) and made <= moment for moment in moments)


def main(folder, scenario):
    comm = mpi.comm_world()  # before anything imports MPI
    from hpc_dasgd.exchange import interface
    from hpc_dasgd.exchange.read.exchange import ReadExchange

    interface.BLOCK_BYTES = 64 * 4  # three blocks
    x0 = np.arange(N_PARAMS, dtype=np.float32)
    device = LateDevice(seed=comm.rank) if scenario.get("device") == "late" else None
    consistency = scenario.get("consistency", "snapshot")
    settings = ExchangeConfig(survive=True, heartbeat_timeout_s=TIMEOUT_S, consistency=consistency)
    setup = interface.ExchangeSetup(comm, x0, settings, device=device)
    exchange = ReadExchange(setup, tree=TREES[scenario["overlay"]](comm.size))
    updates = [Updates(rank) for rank in range(comm.size)]
    kill_at = scenario.get("kills", {}).get(str(comm.rank))
    stop_at = scenario.get("stops", {}).get(str(comm.rank))
    wanted = [rank for rank in range(comm.size) if str(rank) not in scenario.get("kills", {})]
    n_wrong = n_checked = 0
    last_seen = exchange.versions.copy()
    while exchange.versions[wanted].min() < scenario["target"] or is_yet_to_come(exchange.made, kill_at, stop_at):
        exchange.pull()
        update = updates[comm.rank][exchange.made]
        if exchange.made == kill_at:

            def update(lo, hi, out):
                if lo or device:  # during the pass that stores the next publication
                    os.kill(os.getpid(), signal.SIGKILL)
                out[:] = 1.0

        if exchange.made == stop_at:
            suspend_for(2 * TIMEOUT_S)
        exchange.push(update)
        assert np.all(exchange.versions >= last_seen)
        last_seen = exchange.versions.copy()
        if consistency == "snapshot":
            n_checked += 1
            n_wrong += not np.array_equal(exchange.parameters, held_by(exchange.versions, updates))
    if stop_at == "settle":
        suspend_for(2 * TIMEOUT_S)
    outcome = {"n_checked": n_checked, "n_wrong": n_wrong}
    try:
        exchange.settle()
        outcome["gathered"] = exchange.allgather(comm.rank)
    except LeftBehindError as error:
        outcome["left_behind"] = str(error)
    outcome |= {"died": exchange.died, "versions": exchange.versions.tolist(), "made": exchange.made}
    outcome["parameters"] = exchange.parameters.tolist()
    Path(folder, f"rank_{comm.rank}.json").write_text(json.dumps(outcome))
    if "left_behind" in outcome:
        sys.exit(1)
    exchange.free()


main(sys.argv[1], json.loads(sys.argv[2]))
