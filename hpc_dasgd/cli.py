"""The command line: arguments in, exit status out.

0 done; 1 failed while running; 2 the command line, the settings or an input file are wrong; 130 `watch` was left
by Ctrl-C.
"""

import argparse
import json
import math
import os
import platform
import shlex
import sys
import traceback

from hpc_dasgd import launch
from hpc_dasgd.errors import ConfigError, HpcDasgdError, ReplayError

DONE, FAILED, WRONG, INTERRUPTED = 0, 1, 2, 130
PROGRAM = "hpc-dasgd"


def main(arguments: list[str] | None = None) -> int:
    """Run one command and return its exit status. A rank that fails ends the whole job."""
    launch.set_environment_defaults()
    try:
        options = _parser().parse_args(arguments)
        options.run_command(options)
        sys.stdout.flush()
        return DONE
    except ConfigError as error:
        if launch.alone() or getattr(error, "agreed", False):
            if launch.started_rank() == 0:
                print(f"{PROGRAM}: {error}", file=sys.stderr, flush=True)
            if isinstance(error, _UsageError):
                launch.wait_to_exit()
            return WRONG
        return _fail(f"error: {error}")
    except HpcDasgdError as error:
        return _fail(f"error: {error}")
    except BrokenPipeError:
        if launch.mpi_runs():
            return _fail(traceback.format_exc().rstrip())
        # The reader of standard output went away (`| head`): nothing is wrong, nothing more can be written.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return DONE
    except KeyboardInterrupt:
        return _fail("interrupted")
    except SystemExit:
        if launch.alone():
            raise
        # A user's code called `sys.exit` on this rank: MPI would wait for the others in its end, for ever.
        return _fail(traceback.format_exc().rstrip())
    except Exception:
        return _fail(traceback.format_exc().rstrip())


def _fail(message: str) -> int:
    """Say what happened on this rank, and end the other ranks too, which would wait for this one for ever."""
    rank, n_ranks = launch.started_rank(), launch.n_started_ranks()
    where = f"[rank {rank}/{n_ranks} {platform.node()}] " if n_ranks > 1 else ""
    try:
        print(f"{PROGRAM}: {where}{message}", file=sys.stderr, flush=True)
    finally:
        if not launch.alone():
            launch.abort(FAILED)
    return FAILED


class _UsageError(ConfigError):
    """The command line is wrong, and so on every rank."""


class _Parser(argparse.ArgumentParser):
    """Raises instead of exiting, since under a launcher every rank parses.

    `details` are made when help is asked for.
    """

    details = None

    def error(self, message):
        raise _UsageError(f"{message}; see {self.prog} --help")

    def print_help(self, file=None):
        if launch.started_rank() == 0:
            super().print_help(file)

    def format_help(self):
        return super().format_help() + ("" if self.details is None else self.details())


def _parser() -> _Parser:
    parser = _Parser(prog=PROGRAM, description="Decentralized asynchronous SGD by one-sided MPI reads.")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND", parser_class=_Parser)

    def command(name, run_command, text):
        sub = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
        sub.set_defaults(run_command=run_command)
        return sub

    train = command("train", _train, "train, under mpiexec or srun; writes a run directory")
    train.formatter_class = argparse.RawDescriptionHelpFormatter
    train.details = _train_details
    train.add_argument("config", metavar="CONFIG.toml")
    train.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="override one setting; may be repeated",
    )
    train.add_argument("--run", metavar="DIR", help="the run directory (default runs/NAME-TIMESTAMP)")

    staleness = command("staleness", _staleness, "staleness of the gradients of a run")
    staleness.add_argument("run", metavar="RUN")
    staleness.add_argument("--json", action="store_true", help="print one JSON object")

    report = command("report", _report, "summary of a run on the terminal, plots, and a page with everything")
    report.add_argument("run", metavar="RUN")
    report.add_argument("--output", metavar="DIR", help="where plots and page go (default RUN/report)")

    compare = command("compare", _compare, "several runs in one table and one picture")
    compare.add_argument("runs", nargs="+", metavar="RUN")
    compare.add_argument("--loss", type=float, metavar="X", help="time to this loss (default the lowest all reached)")
    compare.add_argument("--output", metavar="DIR", default="compare", help="where the picture goes (default compare)")
    compare.add_argument("--json", action="store_true", help="print one JSON object instead of the table")

    bound = command("bound", _bound, "convergence bounds against what a run measured, term by term")
    bound.add_argument("run", metavar="RUN")
    bound.add_argument("--json", action="store_true", help="print one JSON object")
    bound.add_argument(
        "--set",
        type=_constant,
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="a constant that is known: L, sigma, Q or F_0; may be repeated",
    )
    bound.add_argument("--replay", action="store_true", help="recompute the run and measure true gradients on the way")
    bound.add_argument("--data", metavar="PATH", help="the data set, where it is not where it was")

    replay = command("replay", _replay, "recompute a run of exchange read from its log, bit for bit")
    replay.add_argument("run", metavar="RUN")
    moment = replay.add_mutually_exclusive_group()
    moment.add_argument(
        "--until", type=int, metavar="GRADIENT", help="parameters behind so many gradients of all ranks"
    )
    moment.add_argument(
        "--inspect", type=_rank_and_version, metavar="RANK:VERSION", help="one gradient and its replica"
    )
    replay.add_argument("--output", metavar="FILE.npz", help="write parameters, versions and gradient of that moment")
    replay.add_argument("--data", metavar="PATH", help="the data set, where it is not where it was")

    watch = command("watch", _watch, "follow a running job from another shell, until it ends")
    watch.add_argument("run", metavar="RUN")
    watch.add_argument(
        "--every", type=_positive(float), default=2.0, metavar="SECONDS", help="between looks (default 2)"
    )
    watch.add_argument(
        "--patience",
        type=_positive(float),
        default=60.0,
        metavar="SECONDS",
        help="give up when no file has grown for so long (default 60)",
    )

    plan = command("plan", _plan, "simulates a run: how fast, how stale, before node hours are spent")
    plan.add_argument("config", metavar="CONFIG.toml")
    plan.add_argument("--ranks", type=_positive(int), required=True, metavar="N")
    plan.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="override one setting; may be repeated"
    )
    plan.add_argument("--from", dest="run", metavar="RUN", help="take the times from this run (else measure them here)")
    plan.add_argument("--compute-ms", type=_positive(float), metavar="X", help="time of a gradient, not measured then")
    plan.add_argument("--n-params", type=_positive(int), metavar="D", help="parameters (default as there are)")
    plan.add_argument("--cores", type=_positive(int), metavar="C", help="of a node (default as many as here)")
    plan.add_argument("--ranks-per-node", type=_positive(int), metavar="P", help="(default one for each core)")
    plan.add_argument(
        "--latency-us", type=_positive(float), default=2.0, metavar="L", help="across nodes (default %(default)s)"
    )
    plan.add_argument(
        "--bandwidth-GBps",
        dest="bandwidth",
        type=_positive(float),
        default=10.0,
        metavar="B",
        help="across nodes, for one rank (default %(default)s)",
    )
    plan.add_argument("--seed", type=int, default=0, metavar="S", help="of the simulation (default %(default)s)")
    plan.add_argument("--json", action="store_true", help="print one JSON object")

    doctor = command("doctor", _doctor, "which MPI and network this is, what one-sided calls cost, what to set")
    doctor.add_argument("--json", action="store_true", help="print one JSON list")
    doctor.add_argument("--run", metavar="DIR", default=".", help="where run files would be written (default here)")

    convert = command("convert", _convert, "a data set file from MNIST IDX files, CIFAR-10 batches, .npz or .csv")
    convert.add_argument("source", metavar="SOURCE", help="a file, or a folder with files under their usual names")
    convert.add_argument("target", metavar="DATASET.h5")
    convert.add_argument(
        "--test-share",
        type=_share,
        default=0.2,
        metavar="S",
        help="of examples drawn for the test split, where SOURCE has none (default %(default)s)",
    )

    export = command("export", _export, "final parameters of a run, by name and shape")
    export.add_argument("run", metavar="RUN")
    export.add_argument("parameters", metavar="PARAMETERS.npz")
    return parser


def _share(text: str) -> float:
    try:
        share = float(text)
    except ValueError:
        share = math.nan
    if not 0 <= share < 1:
        raise argparse.ArgumentTypeError(f"must be a number in [0, 1), got {text!r}")
    return share


def _constant(text: str) -> tuple[str, float]:
    from hpc_dasgd.theory import Constants

    name, _, value = text.partition("=")
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if name not in Constants._fields or not 0 <= number < math.inf:
        raise argparse.ArgumentTypeError(f"must be L, sigma, Q or F_0 and a number of at least 0, got {text!r}")
    return name, number


def _rank_and_version(text: str) -> tuple[int, int]:
    rank, _, version = text.partition(":")
    try:
        return int(rank), int(version)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be RANK:VERSION, got {text!r}") from None


def _positive(kind: type):
    """A type of argument: a number above 0."""

    def number(text: str):
        try:
            value = kind(text)
        except ValueError:
            value = math.nan
        if not 0 < value < math.inf:
            words = {int: "integer", float: "number"}[kind]
            raise argparse.ArgumentTypeError(f"must be a positive {words}, got {text!r}")
        return value

    return number


def _train_details() -> str:
    from hpc_dasgd import objectives
    from hpc_dasgd.config import settings_help

    kinds = "\n".join(f"  {kind}: {text}" for kind, text in objectives.describe().items())
    return (
        f"\nsettings (key, default, meaning):\n{settings_help()}\n"
        f"\nobjectives, and the keys that [objective] takes for each:\n{kinds}\n"
    )


def _train(options) -> None:
    comm = launch.world()
    from hpc_dasgd.training import train

    result = train(options.config, comm=comm, overrides=options.set, run=options.run)
    if comm.rank == 0:
        rate = result.gradients / result.seconds if result.seconds > 0 else math.nan
        measured = {"loss": result.loss, "accuracy": result.accuracy}
        reached = [f"{name} {value:.4g}" for name, value in measured.items() if math.isfinite(value)]
        work = f"{result.gradients} gradients on {comm.size} ranks in {result.seconds:.1f} s"
        print(f"done: {work} ({rate:.0f}/s)")
        if result.stepsize_by != "settings":
            print(f"stepsize: {result.stepsize:.4g}, chosen by {result.stepsize_by}")
        if reached:
            print(f"reached: {', '.join(reached)} on the evaluation set")
        print(f"files: {result.run}")
        print(f"next: {PROGRAM} report {shlex.quote(str(result.run))}")


def _staleness(options) -> None:
    from hpc_dasgd import analysis

    run = analysis.open_run(options.run)
    print(json.dumps(run.staleness().as_dict()) if options.json else analysis.staleness_text(run))


def _report(options) -> None:
    from pathlib import Path

    from hpc_dasgd import analysis, report

    run = analysis.open_run(options.run)
    held, reason = report.bounds(run)
    print(report.summary(run, held))
    if reason:
        print(f"note: no bounds: {reason}; see {PROGRAM} bound --help")
    directory = Path(options.output or run.directory / "report")
    paths = report.write_plots(run, directory)
    for path in paths:
        print(f"plot: {path}")
    print(f"page: {report.write_page(run, paths, directory, held)}")


def _compare(options) -> None:
    from pathlib import Path

    from hpc_dasgd import analysis, comparison

    compared = comparison.compare([analysis.open_run(run) for run in options.runs], options.loss)
    print(json.dumps(compared.as_dict()) if options.json else compared.table())
    path = comparison.write_plot(compared, Path(options.output))
    if not options.json:
        print(f"plot: {path}")


def _bound(options) -> None:
    from hpc_dasgd import analysis, bound

    run = analysis.open_run(options.run)
    held = bound.hold(run, dict(options.set), data=options.data, replays=options.replay)
    print(json.dumps(held.as_dict()) if options.json else held.table())


def _replay(options) -> None:
    from hpc_dasgd import analysis, replay

    run = analysis.open_run(options.run)
    if options.until is None and options.inspect is None:
        if options.output:
            raise _UsageError("--output needs --until or --inspect")
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


def _watch(options) -> None:
    try:
        from hpc_dasgd.watch import watch

        watch(options.run, options.every, options.patience)
    except KeyboardInterrupt:
        # How one leaves it, not a failure to speak of.
        raise SystemExit(INTERRUPTED) from None


def _plan(options) -> None:
    from dataclasses import replace

    from hpc_dasgd import analysis
    from hpc_dasgd.config import load_config
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
        times = times_from_run(analysis.open_run(options.run), machine.n_ranks, cores, options.n_params)
        if options.compute_ms is not None:
            times = replace(times, compute_s=[[options.compute_ms / 1e3]])
    found = planning.plan(config, machine, times, options.seed)
    found |= planning.safe_stepsize(config, found)
    print(json.dumps(found) if options.json else planning.text(found))


def _doctor(options) -> None:
    from pathlib import Path

    try:
        comm = launch.world()
    except ConfigError as error:
        # What the launcher did wrong is the doctor's first business.
        found = [{"check": "launch", "status": "wrong", "detail": str(error), "remedy": "see README, On a cluster"}]
        if launch.started_rank() == 0:
            print(json.dumps(found) if options.json else f"wrong  launch: {error}")
        raise SystemExit(FAILED) from None
    from hpc_dasgd import doctor

    found = doctor.examine(comm, Path(options.run))
    if comm.rank == 0:
        print(json.dumps([each._asdict() for each in found]) if options.json else doctor.text(found))


def _convert(options) -> None:
    from hpc_dasgd import convert
    from hpc_dasgd.progress import Counted

    with Counted() as bar:
        n_rows = convert.convert(options.source, options.target, options.test_share, bar.show)
    print(f"data set: {options.target}, {n_rows['train']} examples to train on, {n_rows['test']} to test")


def _export(options) -> None:
    from hpc_dasgd import analysis

    analysis.export(analysis.open_run(options.run), options.parameters)
    print(f"parameters: {options.parameters}")
