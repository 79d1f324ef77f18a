"""Overlays: who reads whom, as pure functions of the number of ranks."""


def complete(rank: int, n_ranks: int) -> tuple[int, ...]:
    """Neighbours of `rank` on the complete overlay: every other rank, ascending."""
    if not 0 <= rank < n_ranks:
        raise ValueError(f"`rank` must be in [0, {n_ranks}), got {rank}")
    return tuple(other for other in range(n_ranks) if other != rank)
