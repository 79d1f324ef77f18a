"""Exchange `gossip`: every rank reads one neighbour at a time and mixes what it has read into its replica.

`choice` selects one of the two ways of mixing, `average` and `push_sum`. `mixing` contains what they share,
`running_sums` the arithmetic of push-sum, and `consensus` the measurement of the distance between replicas. A new way
of mixing is a subclass of `mixing.MixingExchange` and an entry in `choice`.
"""
