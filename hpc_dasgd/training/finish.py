"""End of a run: the final synchronisation, the last checkpoint, and what ``run.h5`` says about it."""

import json

from hpc_dasgd.exchange.interface import Settled
from hpc_dasgd.objectives.interface import Objective
from hpc_dasgd.training import run_record, running_statistics
from hpc_dasgd.training.result import Result
from hpc_dasgd.training.run_record import RankSummary, RunEnd
from hpc_dasgd.training.session import Session


def finish(session: Session, objective: Objective) -> Result:
    """Bring every update into every replica, and complete the files of the run. Collective over its ranks.

    Parameters
    ----------
    session : Session
        Its loop has ended, and it is still open; it is closed here.
    objective : Objective
        Receives the mean over ranks of its running statistics.

    Returns
    -------
    result : Result
    """
    end = _synchronise(session, objective)
    session.close()
    context, exchange = session.context, session.exchange
    outcome = run_record.complete_record(context.directory, exchange, _summarize(session, end.settled), end)
    parameters, died = context.device.to_host(exchange.parameters), exchange.died
    exchange.free()
    chosen = context.stepsize_chosen
    return Result(
        parameters=parameters,
        run=context.directory,
        gradients=outcome.gradients,
        seconds=end.seconds,
        loss=outcome.loss,
        accuracy=outcome.accuracy,
        drift=end.settled.drift,
        stepsize=float(context.config.optimizer.stepsize),
        stepsize_by=f"bound {json.loads(chosen)['bound']}" if chosen else "settings",
        signal=end.signal,
        missing=outcome.missing,
        died=died,
    )


def _synchronise(session: Session, objective: Objective) -> RunEnd:
    """Save the last checkpoint, and make all replicas the same. Collective."""
    exchange, checkpoints = session.exchange, session.records.checkpoints
    seconds = session.clock.now()
    # The work of this rank is saved before the synchronisation if its contribution contains only own updates;
    # otherwise only the synchronised replica contains all of it.
    saves_first = session.context.traits.contribution_is_own
    if saves_first:
        checkpoints.save(seconds)
    signal = next(filter(None, exchange.allgather(session.signals.received)), "")
    settled = exchange.settle()
    if not saves_first:
        checkpoints.save(seconds)
    statistics = running_statistics.average_over_ranks(objective, exchange, session.context.traits)
    if not signal:
        session.records.evaluation.run(exchange, session.clock.now(), settled.consensus_distance)
    return RunEnd(settled, session.context.start, seconds, signal, statistics)


def _summarize(session: Session, settled: Settled) -> RankSummary:
    """Summarize what this rank did, after its log was closed. Collective, except with ``exchange.survive``."""
    exchange, records, clock = session.exchange, session.records, session.clock
    # No collective call if the run survives deaths, because it would wait for ranks that died.
    survives = session.context.config.exchange.survive
    return RankSummary(
        rank=session.context.comm.rank,
        made=exchange.made,
        dropped_reads=settled.dropped_reads,
        transferred_bytes=exchange.transferred_bytes,
        clock_offset_s=clock.offset_s,
        clock_drift_s=0.0 if survives else clock.drift_s(),
        clock_error_s=clock.error_s,
        checkpoint_stall_s=records.checkpoints.longest_stall_s,
        loss=records.evaluation.loss,
        accuracy=records.evaluation.accuracy,
        missing=records.log.missing + records.checkpoints.missing,
    )
