"""The arithmetic of push-sum by running sums: pure, no communication.

Rank `i` holds a numerator `z_i` and a weight `w_i`, which starts at 1; its replica is ``z_i / w_i``. With a
*gift* it keeps the share `a` of both and gives the share `a` to each of its targets: it adds it to the
*running sum* of all that it has ever given to any one of them. A target keeps the running sum that it last
saw, and takes the difference to the new one: every gift once, however many were given between two reads, and
whatever became of single reads (Hadjicostis, Vaidya, Dominguez-Garcia, "Robust distributed average consensus via
exchange of running sums", IEEE Trans. Autom. Control 61 (2016); Spiridonoff, Olshevsky, Paschalidis, "Robust
asynchronous stochastic gradient-push", arXiv 1811.03982).

A numerator and its weight go through the same functions and stand in one array, *mass*, the weight last. All
is float64, whatever the parameters' dtype: a running sum grows with every gift while the gifts do not. After
`t` gifts float32 could tell a gift from its neighbours to within ``t * 6e-8`` of it only, float64 to within
``t * 1e-16``; and numerators, which are added to and subtracted from for ever, would lose mass by their own
rounding.
"""

import numpy as np

# A rank whose weight is below this keeps what it has. Weights of equally fast ranks are about 1 when they give; that
# of a rank 16 times as fast as the average would settle here. Below, it would give away what is hardly worth reading,
# and in the end more of its weight than its gifts, rounded as they are to the running sum's last bit, tell exactly.
LEAST_WEIGHT = 1 / 16


def may_give(weight: float) -> bool:
    """Whether a rank of this weight gives; its weight is therefore at least ``LEAST_WEIGHT * share`` for ever.

    While nothing comes back each gift leaves the share `a` of the weight, so that of a rank among much slower
    ones would vanish. It is not left out: what the others give it makes it give again. Not all can wait for
    each other, since all weights, with what is given and not yet taken, sum to the number of ranks.
    """
    return weight >= LEAST_WEIGHT


def add_update(mass: np.ndarray, weight: float, update: np.ndarray, replica: np.ndarray, scratch: np.ndarray) -> None:
    """Do ``mass += weight * update`` and store ``mass / weight`` into `replica`, which so moves by `update`.

    Parameters
    ----------
    mass, scratch : ndarray, shape (n,), float64
    weight : float
    update, replica : ndarray, shape (n,), float32 or float64
    """
    np.multiply(update, weight, out=scratch, dtype=np.float64)
    np.add(mass, scratch, out=mass)
    np.divide(mass, weight, out=replica, casting="same_kind")


def give(
    mass: np.ndarray, share: float, n_targets: int, given: np.ndarray, now_given: np.ndarray, scratch: np.ndarray
) -> None:
    """Give `share` of `mass` to each of `n_targets`: store the new running sum into `now_given`.

    What is subtracted from `mass` is not what was meant to be given, but what the rounded running sum has
    grown by. That difference is exact, here and in `take`, so mass is lost and made by the rounding of `mass`
    alone, not by that of sums that have grown large.

    Parameters
    ----------
    mass, given, now_given, scratch : ndarray, shape (n,), float64
        No two overlap; `given` is the running sum so far.
    share : float
    n_targets : int
    """
    np.multiply(mass, share, out=scratch)
    np.add(given, scratch, out=now_given)
    np.subtract(now_given, given, out=scratch)
    np.multiply(scratch, n_targets, out=scratch)
    np.subtract(mass, scratch, out=mass)


def take(mass: np.ndarray, given: np.ndarray, seen: np.ndarray, scratch: np.ndarray) -> None:
    """Add to `mass` what the running sum `given` holds beyond `seen`; all float64, shape (n,)."""
    np.subtract(given, seen, out=scratch)
    np.add(mass, scratch, out=mass)
