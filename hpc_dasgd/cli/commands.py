"""The commands: each takes its parsed options and prints its result on standard output.

A command returns its exit status; None means success. The modules that a command needs are imported when it is called.
"""

import argparse
import json
import math
import shlex
import sys
from typing import TYPE_CHECKING

from hpc_dasgd.cli.status import DONE, FAILED, INTERRUPTED, PROGRAM, STOPPED, UsageError
from hpc_dasgd.errors import ConfigError, ReplayError
from hpc_dasgd.runtime import mpi, signals

if TYPE_CHECKING:
    from hpc_dasgd.training.result import Result


def train(options: argparse.Namespace) -> int:
    """Train, and print a summary and the next command. Collective over all ranks of the launch."""
    if options.resume and options.run is None:
        raise UsageError("--resume needs --run DIR")
    comm = mpi.comm_world()
    from hpc_dasgd.training.loop import train

    result = train(options.config, comm=comm, overrides=options.set, run=options.run, resume=options.resume)
    if result.signal:
        signals.ignore_stop_signals()
    status = FAILED if result.missing else STOPPED if result.signal else DONE
    if comm.rank == next(rank for rank in range(comm.size) if rank not in result.died):
        _print_result(result, options, comm.size)
    if status != DONE and not result.died:
        mpi.barrier_before_exit()
    return status


def _print_result(result: "Result", options: argparse.Namespace, n_ranks: int) -> None:
    """Print the result of a training run."""
    for text in result.missing:
        print(f"{PROGRAM}: missing: {text}", file=sys.stderr)
    settings = [word for override in options.set for word in ("--set", override)]
    again = shlex.join([PROGRAM, "train", options.config, *settings, "--run", str(result.run), "--resume"])
    rate = result.gradients / result.seconds if result.seconds > 0 else math.nan
    measured = {"loss": result.loss, "accuracy": result.accuracy}
    reached = [f"{name} {value:.4g}" for name, value in measured.items() if math.isfinite(value)]
    work = f"{result.gradients} gradients on {n_ranks} ranks in {result.seconds:.1f} s"
    print(f"{f'stopped by {result.signal}' if result.signal else 'done'}: {work} ({rate:.0f}/s)")
    if result.died:
        print(f"died: {', '.join(f'rank {rank}' for rank in result.died)}; the others continued")
    if result.stepsize_by != "settings":
        print(f"stepsize: {result.stepsize:.4g}, chosen by {result.stepsize_by}")
    if reached and not result.signal:
        print(f"reached: {', '.join(reached)} on the evaluation set")
    print(f"files: {result.run}")
    print(f"next: {again if result.signal else shlex.join([PROGRAM, 'report', str(result.run)])}")


def staleness(options: argparse.Namespace) -> None:
    """Print the staleness of a run."""
    from hpc_dasgd.analysis.run import open_run
    from hpc_dasgd.report.staleness_table import staleness_text

    run = open_run(options.run)
    print(json.dumps(run.staleness().as_dict()) if options.json else staleness_text(run))


def report(options: argparse.Namespace) -> None:
    """Print a summary of a run, and write its plots and its page."""
    from pathlib import Path

    from hpc_dasgd.analysis.run import open_run
    from hpc_dasgd.report.page import write_page
    from hpc_dasgd.report.plots import write_plots
    from hpc_dasgd.report.quick_bounds import quick_bounds
    from hpc_dasgd.report.summary import summary

    run = open_run(options.run)
    bounds, reason = quick_bounds(run)
    print(summary(run, bounds))
    if reason:
        print(f"note: no bounds: {reason}; see {PROGRAM} bound --help")
    directory = Path(options.output or run.directory / "report")
    paths = write_plots(run, directory)
    for path in paths:
        print(f"plot: {path}")
    print(f"page: {write_page(run, paths, directory, bounds)}")


def compare(options: argparse.Namespace) -> None:
    """Compare runs: print a table, and write a plot."""
    from pathlib import Path

    from hpc_dasgd.analysis.run import open_run
    from hpc_dasgd.report import comparison
    from hpc_dasgd.report.comparison_plot import write_plot
    from hpc_dasgd.report.comparison_table import comparison_table

    compared = comparison.compare([open_run(run) for run in options.runs], options.loss)
    print(json.dumps(compared.as_dict()) if options.json else comparison_table(compared))
    path = write_plot(compared, Path(options.output))
    if not options.json:
        print(f"plot: {path}")


def bound(options: argparse.Namespace) -> None:
    """Compare the convergence bounds with the measurements of a run."""
    from hpc_dasgd.analysis import bound_report
    from hpc_dasgd.analysis.run import open_run
    from hpc_dasgd.report.bound_table import bound_table

    run = open_run(options.run)
    compared = bound_report.compare_with_bounds(run, dict(options.set), data=options.data, with_replay=options.replay)
    print(json.dumps(compared.as_dict()) if options.json else bound_table(compared))


def replay(options: argparse.Namespace) -> None:
    """Recompute a run from its log, or the state at one gradient.

    Raises
    ------
    ReplayError
        If the recomputed run does not agree with the log.
    """
    from hpc_dasgd.analysis import replay
    from hpc_dasgd.analysis.run import open_run
    from hpc_dasgd.report import replay_text

    run = open_run(options.run)
    if options.until is None and options.inspect is None:
        if options.output:
            raise UsageError("--output needs --until or --inspect")
        replayed = replay.replay(run, data=options.data)
        print(replay_text.result_text(replayed))
        if not replayed.agrees:
            raise ReplayError(f"the replay of {run.directory} does not agree with its log")
        return
    if options.inspect is None:
        state = replay.state_after(run, options.until, data=options.data)
    else:
        state = replay.state_at_gradient(run, *options.inspect, data=options.data)
    print(replay_text.state_text(state))
    if options.output:
        replay.write_state(state, options.output)
        print(f"state: {options.output}")


def watch(options: argparse.Namespace) -> None:
    """Follow a run until it ends; Ctrl-C ends the command with status 130."""
    try:
        from hpc_dasgd.watch.display import watch

        watch(options.run, options.every, options.patience)
    except KeyboardInterrupt:
        # The usual way to leave the command, which is not reported as a failure.
        raise SystemExit(INTERRUPTED) from None


def plan(options: argparse.Namespace) -> None:
    """Simulate a run, and print the forecast."""
    from dataclasses import replace

    from hpc_dasgd.analysis.run import open_run
    from hpc_dasgd.config.settings import load_config
    from hpc_dasgd.plan import planning
    from hpc_dasgd.plan.times import times_from_config, times_from_run

    config = load_config(options.config, options.set)
    cores = options.cores or planning.available_cores()
    machine = planning.Machine(
        n_ranks=options.ranks,
        cores=cores,
        ranks_per_node=options.ranks_per_node or cores,
        latency_s=options.latency_us * 1e-6,
        bytes_per_s=options.bandwidth * 1e9,
    )
    if options.run is None:
        times = times_from_config(config, options.compute_ms, options.n_params)
    else:
        times = times_from_run(open_run(options.run), machine.n_ranks, cores, options.n_params)
        if options.compute_ms is not None:
            times = replace(times, compute_s=[[options.compute_ms / 1e3]])
    forecast = planning.plan(config, machine, times, options.seed)
    forecast |= planning.safe_stepsize(config, forecast)
    print(json.dumps(forecast) if options.json else planning.text(forecast))


def slurm(options: argparse.Namespace) -> None:
    """Print a batch script."""
    from dataclasses import fields

    from hpc_dasgd.cli.sbatch import Job, script
    from hpc_dasgd.config.settings import load_config

    config = load_config(options.config, options.set)
    job = Job(**{field.name: getattr(options, field.name) for field in fields(Job)})
    print(script(options.config, config, job, options.set), end="")


def doctor(options: argparse.Namespace) -> None:
    """Check and measure the launch. Collective over all ranks of the launch."""
    from pathlib import Path

    try:
        comm = mpi.comm_world()
    except ConfigError as error:
        # A launch that does not work is a finding of this command, not a wrong setting.
        if mpi.process_rank() == 0:
            check = {"check": "launch", "status": "wrong", "detail": str(error), "remedy": "see README, On a cluster"}
            print(json.dumps([check]) if options.json else f"wrong  launch: {error}")
        raise SystemExit(FAILED) from None
    from hpc_dasgd.doctor import examination

    checks = examination.examine(comm, Path(options.run))
    if comm.rank == 0:
        print(json.dumps([each._asdict() for each in checks]) if options.json else examination.text(checks))


def convert(options: argparse.Namespace) -> None:
    """Make a data set file."""
    from hpc_dasgd.console.progress import StageBar
    from hpc_dasgd.data.convert import conversion
    from hpc_dasgd.runtime.terminal import is_terminal

    with StageBar(is_terminal(sys.stderr)) as bar:
        n_rows = conversion.convert(options.source, options.target, options.test_share, bar.show)
    print(f"data set: {options.target}, {n_rows['train']} training examples, {n_rows['test']} test examples")


def export(options: argparse.Namespace) -> None:
    """Write the parameters of a run to a file."""
    from hpc_dasgd.analysis.export import export_parameters
    from hpc_dasgd.analysis.run import open_run

    run = open_run(options.run)
    export_parameters(run, options.parameters)
    print(f"parameters: {options.parameters}{'' if run.final is not None else ', of the newest checkpoints'}")
