"""How updates travel between ranks; one file per exchange, all with the interface of `interface.Exchange`."""

from hpc_dasgd.config.settings import ExchangeConfig
from hpc_dasgd.exchange.interface import Exchange
from hpc_dasgd.exchange.mirrored import MirroredExchange
from hpc_dasgd.overlay import topology
from hpc_dasgd.runtime import collective


def make_exchange(config: ExchangeConfig, comm, x0, seed: int = 0, device=None) -> Exchange:
    """Make the exchange that `config` names, every replica at `x0`. Collective over `comm`.

    Parameters
    ----------
    config : ExchangeConfig
    comm : MPI.Intracomm
    x0 : ndarray, shape (n_params,), float32 or float64
    seed : int
        Of random overlays.
    device : Host or Gpu, optional
        Where replicas are; ranks may have different ones.
    """
    if device is None or device.on_host or config.kind in ("read", "none"):
        return _make(config, comm, x0, seed, device)
    return MirroredExchange(_make(config, comm, x0, seed, None), device)


def _make(config: ExchangeConfig, comm, x0, seed: int, device) -> Exchange:
    every = 1 if config.every == "auto" else config.every
    if config.kind == "read":
        from hpc_dasgd.exchange.read.exchange import ReadExchange

        return ReadExchange(
            comm,
            x0,
            tree=_tree(config, comm),
            consistency=config.consistency,
            every=every,
            reads_in_flight=config.reads_in_flight,
            heartbeat_timeout_s=config.heartbeat_timeout_s if config.survive else None,
            device=device,
            device_windows=config.device_windows,
        )
    if config.kind == "accumulate":
        from hpc_dasgd.exchange.push.accumulate import AccumulateExchange

        return AccumulateExchange(comm, x0, every=every)
    if config.kind == "server":
        from hpc_dasgd.exchange.push.server import ServerExchange

        return ServerExchange(
            comm, x0, server_rank=config.server_rank, server_computes=config.server_computes, every=every
        )
    if config.kind == "gossip":
        from hpc_dasgd.exchange.gossip.average import AverageExchange
        from hpc_dasgd.exchange.gossip.push_sum import PushSumExchange

        neighbours = topology.graph_neighbours(config.topology, comm.rank, comm.size, degree=config.degree, seed=seed)
        gossip = {"average": AverageExchange, "push-sum": PushSumExchange}[config.mixing]
        return gossip(comm, x0, neighbours=neighbours, every=every)
    if config.kind == "allreduce":
        from hpc_dasgd.exchange.baselines.allreduce import AllreduceExchange

        return AllreduceExchange(comm, x0)
    from hpc_dasgd.exchange.baselines.none import NoExchange

    return NoExchange(comm, x0, device)


def _tree(config: ExchangeConfig, comm):
    """The neighbours of a rank as a function of it; None for the complete overlay."""
    if config.topology == "complete":
        return None
    nodes = collective.node_of_each_rank(comm)
    return lambda rank: topology.tree_neighbours(config.topology, rank, nodes, fan_out=config.fan_out)
