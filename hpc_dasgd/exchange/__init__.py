"""How updates travel between ranks; one file per exchange, all with the interface of `interface.Exchange`."""

from hpc_dasgd.config import ExchangeConfig
from hpc_dasgd.exchange.interface import Exchange


def make(config: ExchangeConfig, comm, x0) -> Exchange:
    """Make the exchange that `config` names, every replica at `x0`. Collective over `comm`."""
    if config.kind == "read":
        from hpc_dasgd.exchange.read import ReadExchange

        return ReadExchange(
            comm,
            x0,
            consistency=config.consistency,
            every=config.every,
            reads_in_flight=config.reads_in_flight,
        )
    if config.kind == "allreduce":
        from hpc_dasgd.exchange.allreduce import AllreduceExchange

        return AllreduceExchange(comm, x0)
    from hpc_dasgd.exchange.none import NoExchange

    return NoExchange(comm, x0)
