"""Overlays: which rank reads which other rank, and the sums of contributions along their edges, as pure functions.

Rooms on higher floors may import it. A new graph or tree is a function in `topology`.
"""
