"""Runs that are killed or damaged, then resumed and checked: ``harness`` and ``survive`` are the programs.

``trials`` performs one trial of ``harness``: ``launched`` starts and kills ranks, ``damage`` damages files, ``counted``
is the objective that is trained, ``expected`` computes what must result, and ``run_checker`` compares files with it.
"""
