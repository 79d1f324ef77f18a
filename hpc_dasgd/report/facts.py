"""Facts about a run as text: its setup and its results."""

import json
import math
from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np

from hpc_dasgd.analysis.run import Run
from hpc_dasgd.config.exchange_traits import traits_in
from hpc_dasgd.console.formats import UNKNOWN, bytes_text, count_text, number_text, rate_text

_STATUS = {
    "complete": "complete",
    "stopped": "stopped by a signal",
    "running": "still running, or killed",
}
_INTERRUPTIONS = {"complete": "extended after its end", "stopped": "stopped by a signal", "running": "killed"}
_MAX_HOSTS = 3  # largest number of hosts that are listed by name


def facts(run: Run) -> list[tuple[str, str]]:
    """Return (name, value) pairs that describe the setup and the results of a run; unknown values are omitted."""
    attributes = run.attributes
    n_gradients, seconds = int(run.counts.sum()), run.seconds
    consensus = known_number(attributes.get("consensus_distance"))
    clock_error = known_number(attributes.get("clock_error_s"))
    rows: list[tuple[str, str | None]] = [
        ("run", f"{run.directory} ({_STATUS[run.status]})"),
        ("started", attributes.get("started")),
        ("ranks", f"{run.n_ranks} on {_hosts(attributes.get('hosts', []))}"),
        ("generations", _generations(run)),
        ("MPI", attributes.get("mpi_library")),
        ("gradients", f"{n_gradients} in {seconds:.1f} s, {rate_text(n_gradients, seconds)}"),
        *_evaluation_facts(run),
        ("stepsize", _chosen_stepsize(run)),
        *_staleness_facts(run),
        ("drift", known_number(attributes.get("drift"))),
        ("dropped reads", known_number(attributes.get("dropped_reads"))),
        ("consensus", consensus and f"{consensus} (root mean squared distance from the mean)"),
        ("transferred", _transferred(run)),
        ("exchanges", _exchange_interval(run)),
        ("clock error", clock_error and f"{clock_error} s"),
    ]
    return [(name, value) for name, value in rows if value is not None]


def software_facts(run: Run) -> list[tuple[str, str]]:
    """Return the command and the versions of the software of a run."""
    suffix = "_version"
    versions = {name.removesuffix(suffix): value for name, value in run.attributes.items() if name.endswith(suffix)}
    rows = [
        ("command", run.attributes.get("command")),
        ("versions", ", ".join(f"{name} {value}" for name, value in versions.items()) or None),
    ]
    return [(name, str(value)) for name, value in rows if value is not None]


def one_line_description(run: Run) -> str:
    """Return in one line the ranks, the objective and the exchange of a run, and when it started."""
    objective, exchange = (run.settings.get(name, {}) for name in ("objective", "exchange"))
    parts = [
        f"{count_text(run.n_ranks, 'rank')} on {_hosts(run.attributes.get('hosts', []))}",
        f"objective {objective['kind']}" if "kind" in objective else "",
        f"exchange {exchange['kind']}" if "kind" in exchange else "",
        f"topology {exchange['topology']}" if traits_in(exchange).chooses_topology and "topology" in exchange else "",
        run.attributes.get("started", ""),
    ]
    return " \N{MIDDLE DOT} ".join(part for part in parts if part)


def hosts_and_devices(run: Run) -> list[str]:
    """Return, for each rank, its host, and its GPU if it used one."""
    hosts = run.attributes.get("hosts") or [""] * run.n_ranks
    devices = run.attributes.get("devices") or ["cpu"] * len(hosts)
    return [host if device == "cpu" else f"{host}, {device}" for host, device in zip(hosts, devices, strict=False)]


def known_number(value: float | None, digits: int = 4) -> str | None:
    """Return a number as `number_text` does, but None if it is unknown (None or nan)."""
    text = number_text(value, digits)
    return None if text == UNKNOWN else text


def _evaluation_facts(run: Run) -> Iterator[tuple[str, str]]:
    evaluation = run.evaluation
    for name, index_of_best in (("loss", np.nanargmin), ("accuracy", np.nanargmax)):
        if not np.isnan(evaluation[name]).all():
            best = evaluation[index_of_best(evaluation[name])]
            yield name, f"{evaluation[name][-1]:.4g}, best {best[name]:.4g} after {best['t_s']:.1f} s"


def _staleness_facts(run: Run) -> Iterator[tuple[str, str]]:
    if run.has_versions:
        numbers = run.staleness().as_dict()
        yield "staleness", "  ".join(f"{name} {numbers[name]:.4g}" for name in ("S_avg", "S_rms", "S_max"))


def _generations(run: Run) -> str | None:
    """Return when and why a run was interrupted, and how many gradients were lost; None if it was not."""
    if len(run.generations) == 1:
        return None
    interruptions = []
    for generation, child, n_lost in zip(run.generations, run.generations[1:], run.lost_work(), strict=False):
        ranks = f", continued with {child.n_ranks} ranks" if child.n_ranks != generation.n_ranks else ""
        cost = f"{_INTERRUPTIONS[generation.status]}, {n_lost} gradients lost{ranks}"
        interruptions.append(f"at {child.begun_s:.1f} s ({cost})")
    return f"{len(run.generations)}, interrupted {', '.join(interruptions)}"


def _chosen_stepsize(run: Run) -> str | None:
    """Return how the stepsize was computed from a bound; None if it is that of the settings."""
    chosen = json.loads(run.attributes.get("stepsize_chosen") or "null")
    if chosen is None:
        return None
    delays = ", ".join(f"{name} {chosen['delays'][name]:.4g}" for name in ("S_avg", "W_max"))
    constants = ", ".join(f"{name} {value:.4g}" for name, value in chosen["constants"].items())
    return (
        f"{chosen['stepsize']:.4g}, chosen by bound {chosen['bound']} before the run with {constants}, and with "
        f"{delays} of a probe"
    )


def _transferred(run: Run) -> str | None:
    """Return the mean number of bytes that a rank read and sent; None if MPI's collectives hide it."""
    by_rank = run.attributes.get("transferred_bytes", [0])
    return f"{bytes_text(float(np.mean(by_rank)))} per rank" if any(by_rank) else None


def _exchange_interval(run: Run) -> str | None:
    """Return how many steps were between exchanges at the end; None if that number was fixed."""
    if run.exchange_intervals is None:
        return None
    last = {int(change["rank"]): change for change in run.exchange_intervals}
    every = [int(last[rank]["every"]) if rank in last else 1 for rank in range(run.n_ranks)]
    overhead = max((change["overhead"] for change in last.values()), default=math.nan)
    return f"every {min(every)} to {max(every)} steps at the end, overhead at most {overhead:.1%} when last changed"


def _hosts(hosts: Sequence[str]) -> str:
    counts = Counter(hosts)
    if len(counts) > _MAX_HOSTS:
        return f"{len(counts)} nodes: {hosts[0]} ... {hosts[-1]}"
    return ", ".join(f"{host} ({count})" for host, count in counts.items()) or "unknown hosts"
