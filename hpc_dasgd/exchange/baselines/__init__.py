"""Baselines that asynchronous exchanges are compared with: `allreduce` (synchronous SGD) and `none`.

A new baseline is a module here and a row in ``config/exchange_traits.py``.
"""
