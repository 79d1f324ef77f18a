"""What each command does: options in, text on standard output."""

import json
import math
import shlex
import sys

from hpc_dasgd.cli.status import DONE, FAILED, INTERRUPTED, PROGRAM, STOPPED, UsageError
from hpc_dasgd.errors import ConfigError, ReplayError
from hpc_dasgd.runtime import mpi, signals


def train(options) -> int:
    if options.resume and options.run is None:
        raise UsageError("--resume needs --run DIR")
    comm = mpi.comm_world()
    from hpc_dasgd.training.loop import train

    result = train(options.config, comm=comm, overrides=options.set, run=options.run, resume=options.resume)
    if result.signal:
        signals.ignore()
    status = FAILED if result.missing else STOPPED if result.signal else DONE
    if comm.rank == next(rank for rank in range(comm.size) if rank not in result.died):
        for text in result.missing:
            print(f"{PROGRAM}: missing: {text}", file=sys.stderr)
        settings = [word for override in options.set for word in ("--set", override)]
        again = shlex.join([PROGRAM, "train", options.config, *settings, "--run", str(result.run), "--resume"])
        rate = result.gradients / result.seconds if result.seconds > 0 else math.nan
        measured = {"loss": result.loss, "accuracy": result.accuracy}
        reached = [f"{name} {value:.4g}" for name, value in measured.items() if math.isfinite(value)]
        work = f"{result.gradients} gradients on {comm.size} ranks in {result.seconds:.1f} s"
        print(f"{f'stopped by {result.signal}' if result.signal else 'done'}: {work} ({rate:.0f}/s)")
        if result.died:
            print(f"died: {', '.join(f'rank {rank}' for rank in result.died)}; the others went on")
        if result.stepsize_by != "settings":
            print(f"stepsize: {result.stepsize:.4g}, chosen by {result.stepsize_by}")
        if reached and not result.signal:
            print(f"reached: {', '.join(reached)} on the evaluation set")
        print(f"files: {result.run}")
        print(f"next: {again if result.signal else shlex.join([PROGRAM, 'report', str(result.run)])}")
    if status != DONE and not result.died:
        mpi.wait_for_all_to_exit()
    return status


def staleness(options) -> None:
    from hpc_dasgd.analysis.run import open_run, staleness_text

    run = open_run(options.run)
    print(json.dumps(run.staleness().as_dict()) if options.json else staleness_text(run))


def report(options) -> None:
    from pathlib import Path

    from hpc_dasgd.analysis.run import open_run
    from hpc_dasgd.report import summary

    run = open_run(options.run)
    held, reason = summary.bounds(run)
    print(summary.summary(run, held))
    if reason:
        print(f"note: no bounds: {reason}; see {PROGRAM} bound --help")
    directory = Path(options.output or run.directory / "report")
    paths = summary.write_plots(run, directory)
    for path in paths:
        print(f"plot: {path}")
    print(f"page: {summary.write_page(run, paths, directory, held)}")


def compare(options) -> None:
    from pathlib import Path

    from hpc_dasgd.analysis.run import open_run
    from hpc_dasgd.report import comparison

    compared = comparison.compare([open_run(run) for run in options.runs], options.loss)
    print(json.dumps(compared.as_dict()) if options.json else compared.table())
    path = comparison.write_plot(compared, Path(options.output))
    if not options.json:
        print(f"plot: {path}")


def bound(options) -> None:
    from hpc_dasgd.analysis import bound_report
    from hpc_dasgd.analysis.run import open_run

    run = open_run(options.run)
    held = bound_report.compare_with_bounds(run, dict(options.set), data=options.data, replays=options.replay)
    print(json.dumps(held.as_dict()) if options.json else held.table())


def replay(options) -> None:
    from hpc_dasgd.analysis import replay
    from hpc_dasgd.analysis.run import open_run

    run = open_run(options.run)
    if options.until is None and options.inspect is None:
        if options.output:
            raise UsageError("--output needs --until or --inspect")
        replayed = replay.replay(run, data=options.data)
        print(replay.text(replayed))
        if not replayed.agrees:
            raise ReplayError(f"the replay of {run.directory} does not agree with its log")
        return
    if options.inspect is None:
        moment = replay.until(run, options.until, data=options.data)
    else:
        moment = replay.inspect(run, *options.inspect, data=options.data)
    print(replay.moment_text(moment))
    if options.output:
        replay.write_moment(moment, options.output)
        print(f"moment: {options.output}")


def watch(options) -> None:
    try:
        from hpc_dasgd.watch.display import watch

        watch(options.run, options.every, options.patience)
    except KeyboardInterrupt:
        # How one leaves it, not a failure to speak of.
        raise SystemExit(INTERRUPTED) from None


def plan(options) -> None:
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
    found = planning.plan(config, machine, times, options.seed)
    found |= planning.safe_stepsize(config, found)
    print(json.dumps(found) if options.json else planning.text(found))


def slurm(options) -> None:
    from dataclasses import fields

    from hpc_dasgd.cli.sbatch import Job, script
    from hpc_dasgd.config.settings import load_config

    config = load_config(options.config, options.set)
    job = Job(**{field.name: getattr(options, field.name) for field in fields(Job)})
    print(script(options.config, config, job, options.set), end="")


def doctor(options) -> None:
    from pathlib import Path

    try:
        comm = mpi.comm_world()
    except ConfigError as error:
        # What the launcher did wrong is the doctor's first business.
        found = [{"check": "launch", "status": "wrong", "detail": str(error), "remedy": "see README, On a cluster"}]
        if mpi.own_rank() == 0:
            print(json.dumps(found) if options.json else f"wrong  launch: {error}")
        raise SystemExit(FAILED) from None
    from hpc_dasgd.doctor import examination

    found = examination.examine(comm, Path(options.run))
    if comm.rank == 0:
        print(json.dumps([each._asdict() for each in found]) if options.json else examination.text(found))


def convert(options) -> None:
    from hpc_dasgd.console.progress import Counted
    from hpc_dasgd.data.convert import conversion

    with Counted() as bar:
        n_rows = conversion.convert(options.source, options.target, options.test_share, bar.show)
    print(f"data set: {options.target}, {n_rows['train']} examples to train on, {n_rows['test']} to test")


def export(options) -> None:
    from hpc_dasgd.analysis.run import export_parameters, open_run

    run = open_run(options.run)
    export_parameters(run, options.parameters)
    print(f"parameters: {options.parameters}{'' if run.final is not None else ', of the newest checkpoints'}")
