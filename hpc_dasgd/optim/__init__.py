"""Optimizers, which turn gradients into updates, and schedules of the stepsize.

Training, analysis and planning import it. A new optimizer is a class in `optimizers`, a new schedule a case in
`schedules`; both are named in ``config/settings.py``.
"""
