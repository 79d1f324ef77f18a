"""Measurements of the MPI, the network and the file system at hand, and what to set.

The command line imports it. A new measurement goes into `measurements`, what it means into `checks`; checks that need
no measurement are in ``runtime/launch_checks.py``.
"""
