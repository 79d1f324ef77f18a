"""Random regular directed graphs.

The construction starts from the directed graph on which each rank is read by the `degree` following ranks. It
draws two edges a -> b and c -> d ``10 * degree * n_ranks`` times, and replaces them by a -> d and c -> b unless
one of these is a loop or exists already. If the graph is then not connected, edges of two components are switched
until it is.

For 4 ranks or more, an unlimited number of switches would draw all graphs of the degree with equal probability.
The known bound on the number of switches needed is a polynomial, far above the number of switches made here
(C. Greenhill, A polynomial bound on the mixing time of a Markov chain for sampling regular directed graphs,
Electron. J. Combin. 18 (2011), P234). On large graphs drawn uniformly, the eigenvalues of the adjacency matrix
other than `degree` hardly exceed ``sqrt(degree)`` in modulus (S. Coste, The spectral gap of sparse random digraphs,
arXiv 1708.00530). Neither result is a proof for the graphs returned here.
"""

from collections.abc import Sequence
from functools import lru_cache
from random import Random


@lru_cache(maxsize=1)  # callers that need all ranks need one graph; 1,000 ranks of degree 4 take 40 ms
def random_targets(n_ranks: int, degree: int, seed: int) -> tuple[set[int], ...]:
    """Return the targets of every rank on a random regular graph.

    Parameters
    ----------
    n_ranks : int
    degree : int
        Number of targets, and of sources, of a rank: ``1 <= degree < n_ranks - 1``.
    seed : int
        The same seed gives the same graph on every platform.

    Returns
    -------
    targets : tuple of set of int
        By rank; not to be changed, because results are cached.
    """
    n_edges = n_ranks * degree
    # Edge k leads from rank k // degree to heads[k].
    heads = [(k // degree + k % degree + 1) % n_ranks for k in range(n_edges)]
    targets = tuple(set(heads[first : first + degree]) for first in range(0, n_edges, degree))
    draw = Random(seed).random  # the only method whose sequence Python promises not to change

    def switch(i: int, j: int) -> None:
        a, b, c, d = i // degree, heads[i], j // degree, heads[j]
        # Two edges with a common end, and an edge drawn twice, fail this test too: the new edges exist already.
        if a != d and c != b and d not in targets[a] and b not in targets[c]:
            targets[a].remove(b)
            targets[a].add(d)
            targets[c].remove(d)
            targets[c].add(b)
            heads[i], heads[j] = d, b

    for _ in range(10 * n_edges):
        switch(int(n_edges * draw()), int(n_edges * draw()))
    # Each component has a closed trail over all its edges. Opened at a -> b and at c -> d, two of them join into one.
    component = _reached(targets)
    while len(component) < n_ranks:
        i, j = int(n_edges * draw()), int(n_edges * draw())
        if (i // degree in component) != (j // degree in component):
            switch(i, j)
            component = _reached(targets)
    return targets


def _reached(targets: Sequence[set[int]]) -> set[int]:
    """Return the ranks to which a path leads from rank 0; on a regular graph, a path also leads back from each.

    No edge leaves this set. On a regular graph the same number of edges enters it, so that no edge enters it either.
    """
    reached, ahead = {0}, [0]
    while ahead:
        new = targets[ahead.pop()] - reached
        reached |= new
        ahead.extend(new)
    return reached
