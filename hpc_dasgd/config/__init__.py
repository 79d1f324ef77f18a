"""Settings of a run: their definition, the rules for their values, and the table of what exchanges can do.

Rooms on higher floors may import it; it imports nothing of the package but `hpc_dasgd.errors`. A new setting is a field
in `settings`, a new kind of value a rule in `rules`, a new exchange a row in `exchange_traits`.
"""
