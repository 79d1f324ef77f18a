"""The command line: arguments in, exit status out.

0 done; 1 failed while running; 2 the command line, the settings or an input file are wrong; 75 `train` was stopped by a
signal, with checkpoints written; 130 `watch` was left by Ctrl-C.
"""

import os
import sys
import traceback

from hpc_dasgd.cli.arguments import make_parser
from hpc_dasgd.cli.status import DONE, FAILED, PROGRAM, WRONG, UsageError
from hpc_dasgd.errors import ConfigError, HpcDasgdError, LeftBehindError
from hpc_dasgd.runtime import launcher, mpi


def main(arguments: list[str] | None = None) -> int:
    """Run one command and return its exit status. A rank that fails ends the whole job."""
    launcher.set_environment_defaults()
    try:
        options = make_parser(PROGRAM).parse_args(arguments)
        status = options.run_command(options)
        sys.stdout.flush()
        return DONE if status is None else status
    except ConfigError as error:
        if mpi.is_single_rank() or getattr(error, "agreed", False):
            if mpi.own_rank() == 0:
                print(f"{PROGRAM}: {error}", file=sys.stderr, flush=True)
            if isinstance(error, UsageError):
                mpi.wait_for_all_to_exit()
            return WRONG
        return _fail(f"error: {error}")
    except LeftBehindError as error:
        # The other ranks ended, or are about to, and are not to be disturbed.
        _say(f"error: {error}")
        return FAILED
    except HpcDasgdError as error:
        return _fail(f"error: {error}")
    except BrokenPipeError:
        if mpi.is_mpi_running():
            return _fail(traceback.format_exc().rstrip())
        # The reader of standard output went away (`| head`): nothing is wrong, nothing more can be written.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return DONE
    except KeyboardInterrupt:
        return _fail("interrupted")
    except SystemExit:
        if mpi.is_single_rank():
            raise
        # A user's code called `sys.exit` on this rank: MPI would wait for the others in its end, for ever.
        return _fail(traceback.format_exc().rstrip())
    except Exception:
        return _fail(traceback.format_exc().rstrip())


def _fail(message: str) -> int:
    """Say what happened on this rank, and end the other ranks too, which would wait for this one for ever."""
    try:
        _say(message)
    finally:
        if not mpi.is_single_rank():
            mpi.abort(FAILED)
    return FAILED


def _say(message: str) -> None:
    print(f"{PROGRAM}: {mpi.rank_prefix()}{message}", file=sys.stderr, flush=True)
