"""Follow a run from another shell while it goes on: looks at its files, as text. Needs no MPI.

watch("runs/digits-20250101-120000", every_s=2.0, patience_s=60.0)
"""

import math
import os
import shutil
import sys
import time

import numpy as np

from hpc_dasgd.errors import ConfigError
from hpc_dasgd.storage import layout
from hpc_dasgd.watch.watcher import RunStatus, Watcher


def line(look: RunStatus) -> str:
    """Return a look as one line."""
    slowest = int(look.rates.argmin())
    parts = [
        f"{look.elapsed_s:8.1f} s",
        _gradients(look),
        *_measured(look),
        f"slowest rank {slowest} ({look.rates[slowest]:.4g}/s)",
        *_end(look),
    ]
    return "  ".join(parts)


def screen(look: RunStatus, columns: int, rows: int) -> list[str]:
    """Return a look as at most `rows` lines of `columns` characters; of many ranks the slowest and the fastest."""
    limits = [f"at most {look.budget['seconds']:g} s"] if "seconds" in look.budget else []
    if "target_loss" in look.budget:
        limits.append(f"to a loss of {look.budget['target_loss']:.4g}")
    lines = [
        f"{look.directory}: {', '.join([look.status, f'{look.elapsed_s:.1f} s', *limits])}",
        "  ".join([_gradients(look), *_end(look)]),
        "  ".join(_measured(look)),
        f"{'rank':>6} {'gradients':>11} {'rate':>11} {'staleness':>10}  last written",
    ]
    order, n_shown = np.argsort(look.rates, kind="stable"), max(2, rows - len(lines))
    if order.size <= n_shown:
        lines += [_rank(look, rank) for rank in range(order.size)]
    else:
        n_fast = (n_shown - 1) // 2
        n_slow = n_shown - 1 - n_fast
        fast = order[order.size - n_fast :]
        rest = f"{'...':>6} {order.size - n_slow - n_fast} ranks between the slowest and the fastest"
        lines += [*(_rank(look, rank) for rank in order[:n_slow]), rest, *(_rank(look, rank) for rank in fast)]
    return [text[:columns] for text in lines[:rows]]


def last_line(look: RunStatus) -> str:
    """Return what there is to say at the end: of a run that ended what it came to, else that nothing comes any more."""
    if not look.ended:
        return f"no news for {look.silent_s:.0f} s: the job was killed or hangs"
    gradients = look.summary.get("gradients", look.gradients)
    seconds = look.summary.get("seconds", look.elapsed_s)
    rate = f" ({gradients / seconds:.4g}/s)" if seconds > 0 else ""
    evaluated = f", {_evaluation(look.evaluation)}" if look.evaluation else ""
    end = "complete" if look.status == "complete" else "stopped by a signal, go on with --resume"
    return f"{end}: {gradients} gradients on {look.counts.size} ranks in {seconds:.1f} s{rate}{evaluated}"


def _gradients(look: RunStatus) -> str:
    n_gradients = look.budget.get("gradients")
    total = f"/{n_gradients} ({look.gradients / n_gradients:.0%})" if n_gradients else ""
    return f"gradients {look.gradients}{total}  {look.rate:.4g}/s"


def _measured(look: RunStatus) -> list[str]:
    values = {"loss": look.loss, "staleness": look.mean_staleness}
    parts = [f"{name} {value:.4g}" for name, value in values.items() if not math.isnan(value)]
    if look.evaluation:
        parts.append(f"evaluated at {look.evaluation['t_s']:.1f} s: {_evaluation(look.evaluation)}")
    return parts


def _evaluation(evaluation: dict) -> str:
    values = {name: evaluation[name] for name in ("loss", "accuracy")}
    return ", ".join(f"{name} {value:.4g}" for name, value in values.items() if not math.isnan(value))


def _end(look: RunStatus) -> list[str]:
    running = not look.ended and not math.isnan(look.remaining_s)
    return [f"ends in {look.remaining_s:.0f} s"] if running else []


def _rank(look: RunStatus, rank: int) -> str:
    staleness, quiet_s = look.staleness[rank], look.quiet_s[rank]
    shown = "-" if math.isnan(staleness) else f"{staleness:.4g}"
    written = "not yet" if math.isnan(quiet_s) else f"{quiet_s:.0f} s ago"
    return f"{rank:>6} {look.counts[rank]:>11} {f'{look.rates[rank]:.4g}/s':>11} {shown:>10}  {written}"


class _Display:
    """Shows one look after another: in the same place of a terminal, or line by line."""

    def __init__(self, stream):
        self._stream, self._in_place, self._n_drawn = stream, stream.isatty(), 0

    def show(self, look: RunStatus) -> None:
        if not self._in_place:
            print(line(look), file=self._stream, flush=True)
            return
        columns, rows = shutil.get_terminal_size()
        lines = screen(look, columns - 1, rows - 2)
        up = f"\x1b[{min(self._n_drawn, rows - 1)}A" if self._n_drawn else ""
        print(up + "".join(f"\r{text}\x1b[K\n" for text in lines) + "\x1b[J", end="", file=self._stream, flush=True)
        self._n_drawn = len(lines)


def watch(path: str | os.PathLike, every_s: float, patience_s: float, stream=None, clock=time.time, sleep=time.sleep):
    """Show how a run goes until it is complete or stopped, or nothing has come for `patience_s`.

    Parameters
    ----------
    path : path
        The run directory, or its ``run.h5``; may come within `patience_s`.
    every_s, patience_s : float, s
    stream : text stream
        Standard output where it is None.
    clock, sleep : callables as ``time.time`` and ``time.sleep``

    Raises
    ------
    ConfigError
        If there is no run, or it cannot be watched.
    """
    stream = sys.stdout if stream is None else stream
    display, heard_s, waiting = _Display(stream), clock(), False
    with Watcher(path) as watcher:
        while True:
            now_s = clock()
            try:
                look = watcher.look(now_s)
            except (OSError, KeyError) as error:
                if not watcher.may_come or now_s - heard_s >= patience_s:
                    rule = f"must be a run directory or its {layout.RUN_FILE}"
                    raise ConfigError(f"{path} {rule}: {layout.reason(error)}") from None
                if not waiting:
                    print(f"waiting for {path}", file=stream, flush=True)
                waiting = True
            else:
                heard_s = now_s
                display.show(look)
                if look.ended or look.silent_s >= patience_s:
                    print(last_line(look), file=stream, flush=True)
                    return
            sleep(every_s)
