"""Exchanges that push updates into models of other ranks: `accumulate` and `server`.

`outbox` queues updates for each target. A new exchange that accumulates into windows goes here.
"""
