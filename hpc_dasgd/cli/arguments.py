"""The arguments of each command: what stands on the command line, checked."""

import argparse
import math

from hpc_dasgd.cli import commands
from hpc_dasgd.cli.status import UsageError
from hpc_dasgd.runtime import mpi


class _Parser(argparse.ArgumentParser):
    """Raises instead of exiting, since under a launcher every rank parses.

    `details` are made when help is asked for.
    """

    details = None

    def error(self, message):
        raise UsageError(f"{message}; see {self.prog} --help")

    def print_help(self, file=None):
        if mpi.own_rank() == 0:
            super().print_help(file)

    def format_help(self):
        return super().format_help() + ("" if self.details is None else self.details())


def make_parser(program: str) -> _Parser:
    """Return the parser of all commands; the one to run is ``options.run_command``."""
    parser = _Parser(prog=program, description="Decentralized asynchronous SGD by one-sided MPI reads.")
    subparsers = parser.add_subparsers(title="commands", required=True, metavar="COMMAND", parser_class=_Parser)

    def command(name, run_command, text):
        sub = subparsers.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
        sub.set_defaults(run_command=run_command)
        return sub

    on_runs = (_watch, _report, _staleness, _bound, _replay, _compare)
    for add in (_train, *on_runs, _plan, _slurm, _convert, _doctor, _export):
        add(command)
    return parser


def _train(command) -> None:
    train = command("train", commands.train, "train, under mpiexec or srun; writes a run directory")
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
    train.add_argument(
        "--resume",
        action="store_true",
        help="go on with the run in DIR from its checkpoints, with any number of ranks; begin it where there is none",
    )


def _watch(command) -> None:
    watch = command("watch", commands.watch, "follow a running job from another shell, until it ends")
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


def _report(command) -> None:
    report = command("report", commands.report, "summary of a run on the terminal, plots, and a page with everything")
    report.add_argument("run", metavar="RUN")
    report.add_argument("--output", metavar="DIR", help="where plots and page go (default RUN/report)")


def _staleness(command) -> None:
    staleness = command("staleness", commands.staleness, "staleness of the gradients of a run")
    staleness.add_argument("run", metavar="RUN")
    staleness.add_argument("--json", action="store_true", help="print one JSON object")


def _bound(command) -> None:
    bound = command("bound", commands.bound, "convergence bounds against what a run measured, term by term")
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


def _replay(command) -> None:
    replay = command("replay", commands.replay, "recompute a run of exchange read from its log, bit for bit")
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


def _compare(command) -> None:
    compare = command("compare", commands.compare, "several runs in one table and one picture")
    compare.add_argument("runs", nargs="+", metavar="RUN")
    compare.add_argument("--loss", type=float, metavar="X", help="time to this loss (default the lowest all reached)")
    compare.add_argument("--output", metavar="DIR", default="compare", help="where the picture goes (default compare)")
    compare.add_argument("--json", action="store_true", help="print one JSON object instead of the table")


def _plan(command) -> None:
    plan = command("plan", commands.plan, "simulates a run: how fast, how stale, before node hours are spent")
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
    plan.add_argument("--seed", type=_whole, default=0, metavar="S", help="of the simulation (default %(default)s)")
    plan.add_argument("--json", action="store_true", help="print one JSON object")


def _slurm(command) -> None:
    slurm = command("slurm", commands.slurm, "prints a batch script for SLURM: srun, time limit, requeue")
    slurm.add_argument("config", metavar="CONFIG.toml")
    slurm.add_argument("--nodes", type=_positive(int), required=True, metavar="N")
    slurm.add_argument(
        "--ranks-per-node", type=_positive(int), metavar="P", help="(default one for each GPU of the node, else one)"
    )
    slurm.add_argument("--cores-per-rank", type=_positive(int), default=1, metavar="C", help="(default %(default)s)")
    slurm.add_argument("--gpus-per-node", type=_positive(int), metavar="G", help="(default none)")
    slurm.add_argument("--time", default="01:00:00", metavar="LIMIT", help="of one start (default %(default)s)")
    slurm.add_argument(
        "--mpi", default="site", help="mpich, intel, openmpi, cray, or site: what srun takes by itself (default)"
    )
    slurm.add_argument("--array", metavar="SEEDS", help="a job for each seed: 0-9, 1,5,7, or 0-99%%10 for ten at once")
    slurm.add_argument("--partition", metavar="NAME")
    slurm.add_argument("--account", metavar="NAME")
    slurm.add_argument(
        "--module", dest="modules", action="append", default=[], metavar="NAME", help="to load; may be repeated"
    )
    slurm.add_argument("--environment", metavar="DIR", help="the Python environment, with hpc-dasgd in DIR/bin")
    slurm.add_argument(
        "--no-requeue", dest="requeue", action="store_false", help="do not queue again what the time limit stopped"
    )
    slurm.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="override one setting; may be repeated"
    )


def _convert(command) -> None:
    convert = command("convert", commands.convert, "a data set from MNIST IDX files, CIFAR-10 batches, .npz or .csv")
    convert.add_argument("source", metavar="SOURCE", help="a file, or a folder with files under their usual names")
    convert.add_argument("target", metavar="DATASET.h5")
    convert.add_argument(
        "--test-share",
        type=_share,
        default=0.2,
        metavar="S",
        help="of examples drawn for the test split, where SOURCE has none (default %(default)s)",
    )


def _doctor(command) -> None:
    doctor = command("doctor", commands.doctor, "which MPI and network this is, what one-sided calls cost, what to set")
    doctor.add_argument("--json", action="store_true", help="print one JSON list")
    doctor.add_argument("--run", metavar="DIR", default=".", help="where run files would be written (default here)")


def _export(command) -> None:
    export = command("export", commands.export, "final parameters of a run, by name and shape")
    export.add_argument("run", metavar="RUN")
    export.add_argument("parameters", metavar="PARAMETERS.npz")


def _share(text: str) -> float:
    try:
        share = float(text)
    except ValueError:
        share = math.nan
    if not 0 <= share < 1:
        raise argparse.ArgumentTypeError(f"must be a number in [0, 1), got {text!r}")
    return share


def _constant(text: str) -> tuple[str, float]:
    from hpc_dasgd.theory.bounds import Constants

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


def _whole(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"must be an integer of at least 0, got {text!r}")
    return int(text)


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
    from hpc_dasgd.config.settings import exchanges_help, settings_help

    kinds = "\n".join(f"  {kind}: {text}" for kind, text in objectives.describe().items())
    return (
        f"\nsettings (key, default, meaning):\n{settings_help()}\n"
        f"\nexchanges:\n{exchanges_help()}\n"
        f"\nobjectives, and the keys that [objective] takes for each:\n{kinds}\n"
    )
