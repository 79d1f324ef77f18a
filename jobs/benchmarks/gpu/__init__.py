"""Benchmark of training on a GPU: ``benchmark`` runs the parts ``gradients``, ``ranks`` and ``copies`` one by one.

Each part is a program of its own, so that a failure or a time limit ends only that part.
"""
