"""The arithmetic of push-sum by running sums, as pure functions without communication.

Rank `i` holds a numerator `z_i` and a weight `w_i`, which is 1 at first; its replica is ``z_i / w_i``. A rank that
*gives* keeps the share `a` of both, and gives the share `a` to each of its targets: it adds it to the *running sum* of
everything that it has given to one of them. A target keeps the running sum that it has read last, and takes the
difference to the new one. Every gift is taken exactly once, for any number of gifts between two reads and for any
number of failed reads (Hadjicostis, Vaidya, Dominguez-Garcia, "Robust distributed average consensus via exchange of
running sums", IEEE Trans. Autom. Control 61 (2016); Spiridonoff, Olshevsky, Paschalidis, "Robust asynchronous
stochastic gradient-push", arXiv 1811.03982).

Numerator and weight are processed by the same functions and stored in one array, the *mass*, with the weight as its
last element. It is float64 for any dtype of the parameters: a running sum grows with every gift, and the gifts do not.
After `t` gifts a float32 running sum would represent a gift with a relative precision of only ``t * 6e-8``, a float64
one with ``t * 1e-16``. Numerators, which are added to and subtracted from during the whole run, would lose mass by
their own rounding.
"""

import numpy as np

from hpc_dasgd.arrays.types import Float64s, Floats

MIN_WEIGHT = 1 / 16
"""Weight below which a rank does not give. Weights of equally fast ranks are about 1 when they give; that of a rank 16
times as fast as the average would approach this value. The gifts of a rank with less weight would hardly be
worth reading, and would finally be as small as the rounding errors of the running sum to which they are added."""


def may_give(weight: float) -> bool:
    """Return True if a rank of this weight gives.

    The weight of a rank is therefore always at least ``MIN_WEIGHT * share``. As long as a rank receives nothing, each
    gift multiplies its weight by the share, so that the weight of a rank among much slower ones would vanish. Such a
    rank is not excluded: it gives again when others have given to it. Not all ranks can wait for each other, because
    the weights, together with what is given and not yet taken, sum to the number of ranks.

    Examples
    --------
    >>> may_give(0.5), may_give(0.01)
    (True, False)
    """
    return weight >= MIN_WEIGHT


def add_update(mass: Float64s, weight: float, update: Floats, replica: Floats, scratch: Float64s) -> None:
    """Add ``weight * update`` to `mass`, and store ``mass / weight`` into `replica`, which moves by `update`.

    Parameters
    ----------
    mass, scratch : ndarray, shape (n,), float64
    weight : float
    update, replica : ndarray, shape (n,), float32 or float64
    """
    np.multiply(update, weight, out=scratch, dtype=np.float64)
    np.add(mass, scratch, out=mass)
    np.divide(mass, weight, out=replica, casting="same_kind")


def give(mass: Float64s, share: float, n_targets: int, given: Float64s, now_given: Float64s, scratch: Float64s) -> None:
    """Give `share` of `mass` to each of `n_targets`: store the new running sum into `now_given`.

    What is subtracted from `mass` is the amount by which the rounded running sum has grown, not the amount that was to
    be given. This difference is exact, here and in `take`. Mass is therefore lost or created only by the rounding of
    `mass`, not by that of large running sums.

    Parameters
    ----------
    mass, given, now_given, scratch : ndarray, shape (n,), float64
        No two of them overlap; `given` is the previous running sum.
    share : float
    n_targets : int
    """
    np.multiply(mass, share, out=scratch)
    np.add(given, scratch, out=now_given)
    np.subtract(now_given, given, out=scratch)
    np.multiply(scratch, n_targets, out=scratch)
    np.subtract(mass, scratch, out=mass)


def take(mass: Float64s, given: Float64s, seen: Float64s, scratch: Float64s) -> None:
    """Add to `mass` the amount by which the running sum `given` exceeds `seen`.

    Parameters
    ----------
    mass, given, seen, scratch : ndarray, shape (n,), float64
    """
    np.subtract(given, seen, out=scratch)
    np.add(mass, scratch, out=mass)
