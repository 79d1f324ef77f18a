"""The functions that say which optional abilities an objective has."""

from types import SimpleNamespace

import pytest

from hpc_dasgd import objectives
from hpc_dasgd.objectives import interface

ABILITIES = [
    interface.can_evaluate,
    interface.has_parameter_shapes,
    interface.has_running_statistics,
    interface.computes_on_gpu,
]


class MinimalObjective:
    def initial(self, rng):
        raise NotImplementedError

    def loss_and_gradient(self, parameters, batch, out):
        raise NotImplementedError


@pytest.mark.parametrize("ability", ABILITIES)
def test_an_objective_with_the_two_required_methods_has_no_optional_ability(ability):
    assert not ability(MinimalObjective())


def test_abilities_of_the_quadratic():
    quadratic = objectives.make("quadratic", {}, None)
    assert [ability(quadratic) for ability in ABILITIES] == [True, True, False, True]


def test_an_ability_that_is_none_or_false_is_absent():
    objective = SimpleNamespace(evaluate=None, parameter_shapes=None, running_statistics=None, on_gpu=False)
    assert [ability(objective) for ability in ABILITIES] == [False] * 4


def test_abilities_that_an_object_forwards_are_found():
    class Wrapper:
        def __init__(self, inner):
            self._inner = inner

        def __getattr__(self, name):
            return getattr(self._inner, name)

    wrapper = Wrapper(objectives.make("quadratic", {}, None))
    assert interface.can_evaluate(wrapper) and interface.computes_on_gpu(wrapper)
