"""Exchanges that push updates into models of other ranks: `accumulate` and `server`.

`pushing` contains what both share, and `outbox` queues updates for each target. A new exchange that accumulates into
windows is a module here.
"""
