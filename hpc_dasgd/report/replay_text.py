"""Results of a replay as text for the terminal."""

import numpy as np

from hpc_dasgd.analysis.replay import ReplayResult, ReplicaState

_MAX_RANKS = 32  # largest number of entries of a version vector that are shown


def result_text(result: ReplayResult) -> str:
    """Return whether a replay agrees with the run, and the differences if it does not."""
    verdict = "agrees" if result.agrees else "DIFFERS"
    lines = [f"{verdict}: {result.n_gradients} gradients recomputed"]
    if result.agrees:
        lines[0] += ", every loss and the final parameters the same bit for bit"
    else:
        lines += [f"final parameters: largest difference {result.largest_difference:.3g}", *result.differences]
    return "\n".join([*lines, f"contributions in memory at the same time: at most {result.max_contributions}"])


def state_text(state: ReplicaState) -> str:
    """Return norms, version vector and loss of a recomputed replica, and warnings."""
    versions = " ".join(map(str, state.versions[:_MAX_RANKS]))
    more = f" ... ({state.versions.size} ranks)" if state.versions.size > _MAX_RANKS else ""
    lines = [
        f"parameters: norm {np.linalg.norm(state.parameters):.6g}",
        f"holds {state.versions.sum()} updates, by rank: {versions}{more}",
    ]
    if state.gradient is not None:
        lines.append(f"gradient: norm {np.linalg.norm(state.gradient):.6g}, loss {state.loss:.6g}")
    return "\n".join([*lines, *(f"warning: {difference}" for difference in state.differences)])
