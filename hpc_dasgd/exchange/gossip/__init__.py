"""Exchange `gossip`: every rank reads one neighbour at a time and mixes what it read into its replica.

`average` and `push_sum` are the two ways of mixing, `mixing` is what they share, `running_sums` the arithmetic of
push-sum, `consensus` the measurement of how far replicas are apart.
"""
