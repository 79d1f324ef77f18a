"""Optimizers, which turn gradients into updates, and schedules of the stepsize.

Training and analysis import it. A new optimizer is a class and an entry in `optimizers`, and a new schedule a case in
`schedules`; both are also listed in ``config/settings.py``.
"""
