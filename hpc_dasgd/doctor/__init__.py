"""Measurements of the MPI library, the network and the file system, and recommended settings.

Only the command line imports it. A new measurement is added to `measurements`, its interpretation to `checks`; checks
that need no measurement are in ``runtime/launch_checks.py``.
"""
