"""Exchange `read`: every rank reads the contributions of its neighbours.

`exchange` contains the protocol. `channels` determines what each rank publishes and reads, `state` holds it. `store` is
the interface of `host_store` and `device_store`, which keep contribution, copies and their sum in host memory or on a
GPU. `membership` is the interface for the deaths of ranks: without it (`AllRanks`), or with it (`survivors`, based on
`failure_detector`, `fallback` and `final_sum`). Only `hpc_dasgd.exchange.registry` imports this package.
"""
