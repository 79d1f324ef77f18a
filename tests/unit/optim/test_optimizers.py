"""Optimizers and schedules, compared with their formulas."""

import math

import numpy as np
import pytest

from hpc_dasgd.errors import ConfigError
from hpc_dasgd.optim import optimizers, schedules

N_PARAMS = 11
BLOCKS = [(0, 4), (4, 5), (5, 11)]
ADAM = {"beta1": 0.8, "beta2": 0.95, "epsilon": 1e-3}
CASES = [("sgd", {}), ("momentum", {"momentum": 0.7}), ("adam", ADAM)]
every_case = pytest.mark.parametrize(("kind", "options"), CASES)


def gradients(n_steps, dtype=np.float64):
    rng = np.random.default_rng(3)
    return [rng.standard_normal(N_PARAMS).astype(dtype) for _ in range(n_steps)]


def stepsizes(n_steps):
    return [0.1 / (1 + step) for step in range(n_steps)]


def updates(optimizer, inputs, sizes, blocks=BLOCKS):
    """Return the updates of a sequence of gradients, computed in blocks."""
    computed = []
    for gradient, stepsize in zip(inputs, sizes, strict=True):
        kept, whole = gradient.copy(), np.full_like(gradient, np.nan)
        block = optimizer.update(gradient, stepsize)
        for lo, hi in blocks:
            block(lo, hi, whole[lo:hi])
        assert np.array_equal(gradient, kept)
        computed.append(whole)
    return computed


def reference_updates(kind, options, inputs, sizes):
    """Return the same updates by the formulas of the docstrings, for one element at a time."""
    computed = np.empty((len(inputs), N_PARAMS))
    for k in range(N_PARAMS):
        velocity = first = second = 0.0
        for t, (gradient, stepsize) in enumerate(zip(inputs, sizes, strict=True), start=1):
            g = float(gradient[k])
            if kind == "sgd":
                computed[t - 1, k] = -stepsize * g
            elif kind == "momentum":
                velocity = options["momentum"] * velocity + g
                computed[t - 1, k] = -stepsize * velocity
            else:
                first = options["beta1"] * first + (1 - options["beta1"]) * g
                second = options["beta2"] * second + (1 - options["beta2"]) * g**2
                first_hat = first / (1 - options["beta1"] ** t)
                second_hat = second / (1 - options["beta2"] ** t)
                computed[t - 1, k] = -stepsize * first_hat / (math.sqrt(second_hat) + options["epsilon"])
    return computed


@every_case
def test_updates_follow_the_formula(kind, options):
    optimizer = optimizers.make_optimizer(kind, N_PARAMS, np.float64, np, **options)
    inputs, sizes = gradients(6), stepsizes(6)
    np.testing.assert_allclose(
        updates(optimizer, inputs, sizes), reference_updates(kind, options, inputs, sizes), rtol=1e-12
    )


@every_case
def test_updates_do_not_depend_on_the_blocks_or_their_order(kind, options):
    inputs, sizes = gradients(4), stepsizes(4)
    computed = []
    for blocks in [[(0, N_PARAMS)], BLOCKS, BLOCKS[::-1], [(k, k + 1) for k in range(N_PARAMS)]]:
        computed.append(
            updates(optimizers.make_optimizer(kind, N_PARAMS, np.float64, np, **options), inputs, sizes, blocks)
        )
    assert all(np.array_equal(computed[0], other) for other in computed[1:])


@every_case
def test_state_and_updates_of_float32_gradients_are_float32(kind, options):
    """They are float32 even if the stepsize is a float64 scalar of NumPy."""
    optimizer, other = (optimizers.make_optimizer(kind, N_PARAMS, "float32", np, **options) for _ in range(2))
    inputs, sizes = gradients(6, np.float32), stepsizes(6)
    computed = updates(optimizer, inputs, sizes)
    assert np.array_equal(computed, updates(other, inputs, [np.float64(size) for size in sizes]))
    assert {update.dtype for update in computed} == {np.dtype(np.float32)}
    arrays = [value for value in optimizer.state.values() if not isinstance(value, int)]
    assert all(array.dtype == np.float32 and array.shape == (N_PARAMS,) for array in arrays)
    np.testing.assert_allclose(computed, reference_updates(kind, options, inputs, sizes), rtol=1e-5)


@every_case
def test_updates_with_another_array_library_are_equal(kind, options):
    xp = pytest.importorskip("array_api_strict")
    inputs, sizes = gradients(4), stepsizes(4)
    expected = updates(optimizers.make_optimizer(kind, N_PARAMS, np.float64, np, **options), inputs, sizes)
    optimizer = optimizers.make_optimizer(kind, N_PARAMS, xp.float64, xp, **options)
    for gradient, stepsize, update in zip(inputs, sizes, expected, strict=True):
        block, out = optimizer.update(xp.asarray(gradient), stepsize), xp.zeros(N_PARAMS, dtype=xp.float64)
        for lo, hi in BLOCKS:
            block(lo, hi, out[lo:hi])
        assert np.array_equal(np.asarray(out), update)


@every_case
def test_an_optimizer_continues_from_a_loaded_state(kind, options):
    inputs, sizes = gradients(6), stepsizes(6)
    whole = updates(optimizers.make_optimizer(kind, N_PARAMS, np.float64, np, **options), inputs, sizes)
    first = optimizers.make_optimizer(kind, N_PARAMS, np.float64, np, **options)
    updates(first, inputs[:3], sizes[:3])
    written = {name: np.array(value) for name, value in first.state.items()}
    second = optimizers.make_optimizer(kind, N_PARAMS, np.float64, np, **options)
    second.load_state(written)
    assert np.array_equal(updates(second, inputs[3:], sizes[3:]), whole[3:])
    for name, value in first.state.items():  # the state was copied
        assert np.array_equal(written[name], value)


def test_names_of_the_state_of_each_optimizer():
    computed = {
        kind: optimizers.make_optimizer(kind, N_PARAMS, np.float64, np, **options).state for kind, options in CASES
    }
    names = {kind: sorted(state) for kind, state in computed.items()}
    assert names == {"sgd": [], "momentum": ["velocity"], "adam": ["first_moment", "second_moment", "step"]}


@every_case
def test_a_state_with_other_names_or_shapes_is_rejected(kind, options):
    optimizer = optimizers.make_optimizer(kind, N_PARAMS, np.float64, np, **options)
    with pytest.raises(ValueError, match="optimizer state must hold"):
        optimizer.load_state({**optimizer.state, "other": 1})
    for name in optimizer.state:
        if name != "step":
            with pytest.raises(ValueError, match=rf"`{name}` .* must have shape \(11,\), got \(3,\)"):
                optimizer.load_state({**optimizer.state, name: np.zeros(3)})


def test_default_options_are_those_of_the_settings():
    inputs, sizes = gradients(3), stepsizes(3)
    defaults = {"momentum": {"momentum": 0.9}, "adam": {"beta1": 0.9, "beta2": 0.999, "epsilon": 1e-8}}
    for kind, options in defaults.items():
        computed = updates(optimizers.make_optimizer(kind, N_PARAMS, np.float64, np), inputs, sizes)
        np.testing.assert_allclose(computed, reference_updates(kind, options, inputs, sizes), rtol=1e-10)


def test_an_unknown_kind_of_optimizer_or_schedule_is_an_error():
    with pytest.raises(ConfigError, match=r"`optimizer\.kind` must be one of sgd, momentum, adam, got 'lion'"):
        optimizers.make_optimizer("lion", N_PARAMS, np.float64, np)
    with pytest.raises(ConfigError, match=r"`optimizer\.schedule` must be one of .*, got 'linear'"):
        schedules.make_schedule("linear", 0.1, 100)


def unused():
    """Fail in place of the staleness, which schedules that do not depend on it must not compute."""
    raise AssertionError("the staleness was computed")


def test_the_constant_schedule_returns_the_same_stepsize():
    stepsize_at = schedules.make_schedule("constant", 0.3, None)
    assert [stepsize_at(progress, unused) for progress in (0, 1, 10**9)] == [0.3] * 3


def test_the_cosine_schedule_decreases_to_zero_at_the_horizon():
    stepsize_at = schedules.make_schedule("cosine", 0.4, 120)
    values = [stepsize_at(progress, unused) for progress in (0, 40, 60, 80, 120, 121, 5000)]
    assert values == pytest.approx([0.4, 0.3, 0.2, 0.1, 0.0, 0.0, 0.0], abs=1e-15)
    assert min(stepsize_at(progress, unused) for progress in range(200)) == 0.0


def test_the_step_schedule_multiplies_after_every_step():
    stepsize_at = schedules.make_schedule("step", 8.0, None, step_every=10, step_factor=0.5)
    assert [stepsize_at(progress, unused) for progress in (0, 9, 10, 19, 20, 35)] == [8.0, 8.0, 4.0, 4.0, 2.0, 1.0]


@pytest.mark.parametrize("horizon", [9, 10, 11, 100, 20000])
def test_the_step_schedule_multiplies_after_each_third_of_the_horizon(horizon):
    stepsize_at = schedules.make_schedule("step", 1.0, horizon)
    for progress in range(horizon + 1):
        steps = sum(3 * progress >= k * horizon for k in (1, 2, 3))
        assert stepsize_at(progress, unused) == pytest.approx(0.1**steps)


def test_the_staleness_adaptive_schedule_reduces_the_stepsize_of_stale_gradients():
    stepsize_at = schedules.make_schedule("staleness-adaptive", 0.6, None, concurrency=4)
    values = [stepsize_at(0, lambda staleness=staleness: staleness) for staleness in (0, 1, 4, 5, 8, 400)]
    assert values == pytest.approx([0.6, 0.6, 0.6, 0.48, 0.3, 0.006])


def test_a_schedule_without_the_settings_that_it_needs_is_an_error():
    with pytest.raises(ConfigError, match=r'`optimizer\.schedule` = "cosine" needs `budget\.gradients`'):
        schedules.make_schedule("cosine", 0.1, None)
    with pytest.raises(ConfigError, match=r"needs `optimizer\.step_every` or `budget\.gradients`"):
        schedules.make_schedule("step", 0.1, None)
