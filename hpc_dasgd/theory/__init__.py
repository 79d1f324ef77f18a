"""Theory of stale gradients: version vectors, staleness, convergence bounds and the stepsizes that follow from them.

Analysis, training and planning import it; it needs no MPI and no files. A new quantity that is computed from version
vectors or from the constants of an objective goes here; ``docs/theory.md`` has the definitions and proofs.
"""
