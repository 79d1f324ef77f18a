"""Overlays: which rank reads which, and the sums of contributions that travel along their edges. Pure functions.

Every room above `arrays` may import it. A new graph or tree is a function in `topology`.
"""
