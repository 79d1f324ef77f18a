"""Baselines with which asynchronous exchanges are compared: `allreduce` (synchronous SGD) and `none`.

A new baseline is a module here and a row in ``config/exchange_traits.py``.
"""
