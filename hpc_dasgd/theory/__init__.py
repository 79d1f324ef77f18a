"""Theory of stale gradients: version vectors, staleness, convergence bounds and the stepsizes that follow from them.

Training, analysis and the rooms above them may import it; it needs no MPI and no files. A new quantity that is computed
from version vectors or from the constants of an objective belongs here; ``docs/theory.md`` contains the definitions and
proofs.
"""
