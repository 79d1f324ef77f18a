"""A rank of test_survival: makes integer updates and checks its replica, until it dies or its work is done.

    python mortal_ranks.py FOLDER SCENARIO_AS_JSON

`scenario`: ``overlay``; ``kills`` and ``stops``, by rank the own update within which it kills itself, or stops itself
for two heartbeat timeouts; ``consistency``; ``device``; ``target``, the updates that a rank wants to hold of each that
is not killed. Writes what it came to into ``FOLDER/rank_R.json``.
"""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np

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


def stop_for(seconds):
    subprocess.Popen(["sh", "-c", f"sleep {seconds}; kill -CONT {os.getpid()}"], start_new_session=True)
    os.kill(os.getpid(), signal.SIGSTOP)


def has_to_come(made, *moments):
    """Whether a rank that was slower than the others has yet to meet its fate."""
    return any(isinstance(moment, int) and made <= moment for moment in moments)


def main(folder, scenario):
    comm = mpi.comm_world()  # before anything imports MPI
    from hpc_dasgd.exchange import interface
    from hpc_dasgd.exchange.read.exchange import ReadExchange

    interface.BLOCK_BYTES = 64 * 4  # three blocks
    x0 = np.arange(N_PARAMS, dtype=np.float32)
    device = LateDevice(seed=comm.rank) if scenario.get("device") == "late" else None
    exchange = ReadExchange(
        comm,
        x0,
        tree=TREES[scenario["overlay"]](comm.size),
        consistency=scenario.get("consistency", "snapshot"),
        heartbeat_timeout_s=TIMEOUT_S,
        device=device,
    )
    updates = [Updates(rank) for rank in range(comm.size)]
    kill_at = scenario.get("kills", {}).get(str(comm.rank))
    stop_at = scenario.get("stops", {}).get(str(comm.rank))
    wanted = [rank for rank in range(comm.size) if str(rank) not in scenario.get("kills", {})]
    n_wrong = n_checked = 0
    last_seen = exchange.versions.copy()
    while exchange.versions[wanted].min() < scenario["target"] or has_to_come(exchange.made, kill_at, stop_at):
        exchange.pull()
        update = updates[comm.rank][exchange.made]
        if exchange.made == kill_at:

            def update(lo, hi, out):
                if lo or device:  # within the pass that stores the next publication
                    os.kill(os.getpid(), signal.SIGKILL)
                out[:] = 1.0

        if exchange.made == stop_at:
            stop_for(2 * TIMEOUT_S)
        exchange.push(update)
        assert np.all(exchange.versions >= last_seen)
        last_seen = exchange.versions.copy()
        if scenario.get("consistency", "snapshot") == "snapshot":
            n_checked += 1
            n_wrong += not np.array_equal(exchange.parameters, held_by(exchange.versions, updates))
    if stop_at == "settle":
        stop_for(2 * TIMEOUT_S)
    found = {"n_checked": n_checked, "n_wrong": n_wrong}
    try:
        exchange.settle()
        found["gathered"] = exchange.allgather(comm.rank)
    except LeftBehindError as error:
        found["left_behind"] = str(error)
    found |= {"died": exchange.died, "versions": exchange.versions.tolist(), "made": exchange.made}
    found["parameters"] = exchange.parameters.tolist()
    Path(folder, f"rank_{comm.rank}.json").write_text(json.dumps(found))
    if "left_behind" in found:
        sys.exit(1)
    exchange.free()


main(sys.argv[1], json.loads(sys.argv[2]))
