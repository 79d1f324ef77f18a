"""Estimates of constants, on functions whose constants are known."""

import math

import numpy as np
import pytest

from hpc_dasgd import objectives
from hpc_dasgd.data.dataset import open_dataset
from hpc_dasgd.objectives.quadratic import Quadratic
from hpc_dasgd.theory import constants


class QuadraticWithoutConstants:
    """A quadratic that does not state its constants."""

    def __init__(self, shift=0.0, **options):
        self._quadratic, self._shift = Quadratic(None, **options), shift
        self.true_constants = self._quadratic.constants()

    def initial(self, rng):
        return self._quadratic.initial(rng)

    def loss_and_gradient(self, parameters, batch, out):
        return self._quadratic.loss_and_gradient(parameters, batch, out) + self._shift


@pytest.fixture
def batches():
    return constants.probe_sampler(0, None, 1)


@pytest.mark.parametrize("noise", [0.0, 0.5, 3.0])
def test_estimates_agree_with_the_constants_of_a_quadratic(batches, noise):
    objective = QuadraticWithoutConstants(dimension=40, L=2.0, mu=0.1, noise=noise)
    x0 = objective.initial(None)
    points = [x0, 0.1 * x0]
    probes = [constants.probe(objective, batches, point) for point in points]
    found = constants.estimate(objective, batches, points, probes)
    known = objective.true_constants
    assert found["L"].value == pytest.approx(2.0, rel=0.05)
    assert abs(found["sigma"].value - noise) <= 5 * found["sigma"].error + 1e-12
    assert found["sigma"].error <= 0.2 * noise + 1e-12
    assert found["F_0"].value == pytest.approx(known["F_0"])
    gradient = known["L"] * np.geomspace(1, 0.05, 40)
    assert found["Q"].value >= np.linalg.norm(gradient) - noise
    for taken, scale in zip(probes, (1.0, 0.1), strict=True):
        # The mean gradient of 64 batches has a component of noise along the true one.
        true = scale * np.linalg.norm(gradient)
        assert abs(taken.mean_square - true**2) <= 5 * (2 * true * noise / 8 / 40**0.5 + noise**2 / 64) + 1e-9
    assert probes[1].loss == pytest.approx(0.01 * known["F_0"])


def test_constants_that_the_objective_states_are_not_estimated(batches):
    objective = Quadratic(None, dimension=5, L=3.0, mu=0.5, noise=0.25)
    x0 = objective.initial(None)
    found = constants.estimate(objective, batches, [x0], [constants.probe(objective, batches, x0)])
    assert {name: found[name].value for name in ("L", "sigma", "F_0")} == {
        name: objective.constants()[name] for name in ("L", "sigma", "F_0")
    }
    assert found["sigma"].error == 0.0
    assert found["sigma"].source == "known by the objective"


def test_a_negative_loss_replaces_the_assumed_minimum_of_zero(batches):
    objective = QuadraticWithoutConstants(shift=-100.0, dimension=5, noise=0.0)
    x0 = objective.initial(None)
    points = [x0, np.zeros(5)]
    probes = [constants.probe(objective, batches, point) for point in points]
    found = constants.estimate(objective, batches, points, probes)
    assert found["F_0"].value == pytest.approx(objective.true_constants["F_0"])
    assert "smallest loss seen" in found["F_0"].source


def test_the_variance_of_real_data_agrees_with_that_over_all_examples():
    """The reference is the variance over the whole training set, with batches of one example each."""
    data = open_dataset("digits", "float64")
    objective = objectives.make("softmax", {}, data)
    x0 = objective.initial(np.random.default_rng(0))
    gradient, total, squares = np.empty_like(x0), np.zeros_like(x0), 0.0
    n_rows = data.train.n_rows
    for row in range(n_rows):
        batch = type(constants.probe_sampler(0, data.train, 1).batch(0))(*data.train.rows(np.array([row])))
        objective.loss_and_gradient(x0, batch, gradient)
        total += gradient
        squares += gradient @ gradient
    variance = squares / n_rows - (total @ total) / n_rows**2
    taken = constants.probe(objective, constants.probe_sampler(0, data.train, 16), x0)
    assert abs(taken.variance - variance / 16) <= 5 * taken.variance_error
    found = constants.estimate(objective, constants.probe_sampler(0, data.train, 16), [x0], [taken])
    assert found["F_0"].value == pytest.approx(math.log(10))
    # The objective states an upper bound of L, from a trace; the curvature at one point is smaller.
    assert constants.curvature(objective, constants.probe_sampler(0, data.train, 16), x0).value < found["L"].value
