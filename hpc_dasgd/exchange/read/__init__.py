"""Exchange `read`: every rank reads the contributions of its neighbours.

`exchange` has the protocol, `host_store` and `device_store` keep contribution, copies and their sum in host memory or
on a GPU, `survival` lets the ranks go on without those that died. Only `hpc_dasgd.exchange.registry` imports it.
"""
