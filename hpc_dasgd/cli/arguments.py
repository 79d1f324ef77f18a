"""The arguments of each command, with their help texts."""

import argparse
from collections.abc import Callable
from typing import TypeAlias

from hpc_dasgd.cli import commands, values
from hpc_dasgd.cli.parser import Parser

RunCommand: TypeAlias = Callable[[argparse.Namespace], int | None]
AddCommand: TypeAlias = Callable[[str, RunCommand, str], Parser]
"""Adds a command by its name, its function and its help text; returns the parser of its arguments."""


def make_parser(program: str) -> Parser:
    """Return the parser of all commands. The function of the parsed command is ``options.run_command``."""
    parser = Parser(prog=program, description="Decentralized asynchronous SGD with one-sided MPI communication.")
    subparsers = parser.add_subparsers(title="commands", required=True, metavar="COMMAND", parser_class=Parser)

    def add_command(name: str, run_command: RunCommand, text: str) -> Parser:
        command: Parser = subparsers.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.")
        command.set_defaults(run_command=run_command)
        return command

    reading_runs = (_add_watch, _add_report, _add_staleness, _add_bound, _add_replay, _add_compare)
    for add in (_add_train, *reading_runs, _add_plan, _add_slurm, _add_convert, _add_doctor, _add_export):
        add(add_command)
    return parser


def _add_train(add_command: AddCommand) -> None:
    train = add_command(
        "train", commands.train, "train a model on all ranks of mpiexec or srun, and write a run directory"
    )
    train.formatter_class = argparse.RawDescriptionHelpFormatter
    train.details = _train_details
    _add_config_argument(train)
    train.add_argument("--run", metavar="DIR", help="run directory (default: runs/NAME-TIMESTAMP)")
    train.add_argument(
        "--resume",
        action="store_true",
        help="resume the run in DIR from its checkpoints, with any number of ranks; start a new run if there is none",
    )


def _add_watch(add_command: AddCommand) -> None:
    watch = add_command("watch", commands.watch, "follow a running job from another shell until it ends")
    _add_run_argument(watch)
    watch.add_argument(
        "--every",
        type=values.positive_float,
        default=2.0,
        metavar="SECONDS",
        help="time between two updates (default: %(default)g)",
    )
    watch.add_argument(
        "--patience",
        type=values.positive_float,
        default=60.0,
        metavar="SECONDS",
        help="stop watching if no file has changed for this time (default: %(default)g)",
    )


def _add_report(add_command: AddCommand) -> None:
    report = add_command("report", commands.report, "print a summary of a run, and write plots and an HTML page")
    _add_run_argument(report)
    report.add_argument("--output", metavar="DIR", help="directory of the plots and the page (default: RUN/report)")


def _add_staleness(add_command: AddCommand) -> None:
    staleness = add_command("staleness", commands.staleness, "print the staleness of the gradients of a run")
    _add_run_argument(staleness)
    _add_json_argument(staleness)


def _add_bound(add_command: AddCommand) -> None:
    bound = add_command(
        "bound", commands.bound, "compare the convergence bounds with the measurements of a run, term by term"
    )
    _add_run_argument(bound)
    _add_json_argument(bound)
    bound.add_argument(
        "--set",
        type=values.constant,
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="value of a constant that is known, L, sigma, Q or F_0, in place of an estimate; may be repeated",
    )
    bound.add_argument("--replay", action="store_true", help="recompute the run to measure its true gradients")
    _add_data_argument(bound)


def _add_replay(add_command: AddCommand) -> None:
    replay = add_command(
        "replay", commands.replay, "recompute a run with exchange read from its log, and compare it bit for bit"
    )
    _add_run_argument(replay)
    state = replay.add_mutually_exclusive_group()
    state.add_argument(
        "--until",
        type=int,
        metavar="N",
        help="recompute only the parameters after the first N gradients of all ranks",
    )
    state.add_argument(
        "--inspect",
        type=values.rank_and_version,
        metavar="RANK:VERSION",
        help="recompute only one gradient, given by its rank and its number, and its replica",
    )
    replay.add_argument(
        "--output", metavar="FILE.npz", help="with --until or --inspect: write parameters, version vector and gradient"
    )
    _add_data_argument(replay)


def _add_compare(add_command: AddCommand) -> None:
    compare = add_command("compare", commands.compare, "compare several runs in one table and one plot")
    compare.add_argument("runs", nargs="+", metavar="RUN", help="run directories")
    compare.add_argument(
        "--loss",
        type=float,
        metavar="X",
        help="compare the times to this loss (default: the lowest loss that all runs reached)",
    )
    compare.add_argument(
        "--output", metavar="DIR", default="compare", help="directory of the plot (default: %(default)s)"
    )
    _add_json_argument(compare)


def _add_plan(add_command: AddCommand) -> None:
    plan = add_command(
        "plan", commands.plan, "simulate a run before using node hours: throughput, staleness, safe stepsize"
    )
    _add_config_argument(plan)
    plan.add_argument("--ranks", type=values.positive_int, required=True, metavar="N", help="number of ranks")
    plan.add_argument(
        "--from", dest="run", metavar="RUN", help="take the times from this run (default: measure them here)"
    )
    plan.add_argument(
        "--compute-ms",
        type=values.positive_float,
        metavar="X",
        help="time of one gradient in milliseconds (default: from RUN, or measured)",
    )
    plan.add_argument(
        "--n-params",
        type=values.positive_int,
        metavar="D",
        help="number of parameters (default: that of the objective)",
    )
    plan.add_argument(
        "--cores",
        type=values.positive_int,
        metavar="C",
        help="number of cores of a node (default: that of this machine)",
    )
    plan.add_argument(
        "--ranks-per-node",
        type=values.positive_int,
        metavar="P",
        help="number of ranks per node (default: one per core)",
    )
    plan.add_argument(
        "--latency-us",
        type=values.positive_float,
        default=2.0,
        metavar="L",
        help="latency of a read across nodes in microseconds (default: %(default)s)",
    )
    plan.add_argument(
        "--bandwidth-GBps",
        dest="bandwidth",
        type=values.positive_float,
        default=10.0,
        metavar="B",
        help="bandwidth of reads across nodes by one rank in GB/s (default: %(default)s)",
    )
    plan.add_argument(
        "--seed",
        type=values.non_negative_int,
        default=0,
        metavar="S",
        help="seed of the simulation (default: %(default)s)",
    )
    _add_json_argument(plan)


def _add_slurm(add_command: AddCommand) -> None:
    slurm = add_command("slurm", commands.slurm, "print a batch script for SLURM that can be stopped and requeued")
    _add_config_argument(slurm)
    slurm.add_argument("--nodes", type=values.positive_int, required=True, metavar="N", help="number of nodes")
    slurm.add_argument(
        "--ranks-per-node",
        type=values.positive_int,
        metavar="P",
        help="number of ranks per node (default: one per GPU, without GPUs one)",
    )
    slurm.add_argument(
        "--cores-per-rank",
        type=values.positive_int,
        default=1,
        metavar="C",
        help="number of cores per rank (default: %(default)s)",
    )
    slurm.add_argument(
        "--gpus-per-node", type=values.positive_int, metavar="G", help="number of GPUs per node (default: none)"
    )
    slurm.add_argument(
        "--time", default="01:00:00", metavar="LIMIT", help="time limit of each start (default: %(default)s)"
    )
    slurm.add_argument(
        "--mpi",
        default="site",
        help="MPI library: mpich, intel, openmpi, cray, or site for the default of srun (default: %(default)s)",
    )
    slurm.add_argument(
        "--array", metavar="SEEDS", help="start one job per seed: 0-9, 1,5,7, or 0-99%%10 for at most ten at a time"
    )
    slurm.add_argument("--partition", metavar="NAME", help="partition of SLURM (default: that of the site)")
    slurm.add_argument("--account", metavar="NAME", help="account of SLURM (default: that of the user)")
    slurm.add_argument(
        "--module",
        dest="modules",
        action="append",
        default=[],
        metavar="NAME",
        help="environment module to load; may be repeated",
    )
    slurm.add_argument(
        "--environment", metavar="DIR", help="Python environment to use, with the program at DIR/bin/hpc-dasgd"
    )
    slurm.add_argument(
        "--no-requeue",
        dest="requeue",
        action="store_false",
        help="do not requeue a job that was stopped at its time limit",
    )


def _add_convert(add_command: AddCommand) -> None:
    convert = add_command(
        "convert", commands.convert, "make a data set file from MNIST IDX files, CIFAR-10 batches, .npz or .csv files"
    )
    convert.add_argument("source", metavar="SOURCE", help="a file, or a directory with files under their usual names")
    convert.add_argument("target", metavar="DATASET.h5", help="data set file to write")
    convert.add_argument(
        "--test-share",
        type=values.share,
        default=0.2,
        metavar="S",
        help="fraction of the examples drawn for the test split, if SOURCE has none (default: %(default)s)",
    )


def _add_doctor(add_command: AddCommand) -> None:
    doctor = add_command(
        "doctor",
        commands.doctor,
        "check MPI library, network and file system, measure one-sided calls, and recommend settings",
    )
    _add_json_argument(doctor, "print one JSON list")
    doctor.add_argument(
        "--run",
        metavar="DIR",
        default=".",
        help="directory in which run files would be written (default: the current directory)",
    )


def _add_export(add_command: AddCommand) -> None:
    export = add_command(
        "export", commands.export, "write the final parameters of a run to an .npz file, by name and shape"
    )
    _add_run_argument(export)
    export.add_argument("parameters", metavar="PARAMETERS.npz", help="file to write")


def _add_config_argument(parser: Parser) -> None:
    parser.add_argument("config", metavar="CONFIG.toml", help="settings file; see hpc-dasgd train --help")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="override one setting, such as exchange.topology=tree; may be repeated",
    )


def _add_run_argument(parser: Parser) -> None:
    parser.add_argument("run", metavar="RUN", help="run directory")


def _add_json_argument(parser: Parser, text: str = "print one JSON object") -> None:
    parser.add_argument("--json", action="store_true", help=text)


def _add_data_argument(parser: Parser) -> None:
    parser.add_argument("--data", metavar="PATH", help="data set file, if the data set has moved since the run")


def _train_details() -> str:
    """Return the settings, exchanges and objectives for ``train --help``."""
    from hpc_dasgd import objectives
    from hpc_dasgd.config.help import exchanges_help, settings_help

    kinds = "\n".join(f"  {kind}: {text}" for kind, text in objectives.describe().items())
    return (
        f"\nsettings (key, default, meaning):\n{settings_help()}\n"
        f"\nexchanges:\n{exchanges_help()}\n"
        f"\nobjectives, and the keys of [objective] that each takes:\n{kinds}\n"
    )
