"""Optimizers against their formulas, written out element by element; stepsizes against theirs."""

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


def updates(optimizer, given, sizes, blocks=BLOCKS):
    """The updates for a sequence of gradients, put together from blocks."""
    made = []
    for gradient, stepsize in zip(given, sizes, strict=True):
        kept, whole = gradient.copy(), np.full_like(gradient, np.nan)
        block = optimizer.update(gradient, stepsize)
        for lo, hi in blocks:
            block(lo, hi, whole[lo:hi])
        assert np.array_equal(gradient, kept)
        made.append(whole)
    return made


def textbook(kind, options, given, sizes):
    """The same by the formulas of the docstrings, for one element at a time."""
    made = np.empty((len(given), N_PARAMS))
    for k in range(N_PARAMS):
        velocity = first = second = 0.0
        for t, (gradient, stepsize) in enumerate(zip(given, sizes, strict=True), start=1):
            g = float(gradient[k])
            if kind == "sgd":
                made[t - 1, k] = -stepsize * g
            elif kind == "momentum":
                velocity = options["momentum"] * velocity + g
                made[t - 1, k] = -stepsize * velocity
            else:
                first = options["beta1"] * first + (1 - options["beta1"]) * g
                second = options["beta2"] * second + (1 - options["beta2"]) * g**2
                first_hat = first / (1 - options["beta1"] ** t)
                second_hat = second / (1 - options["beta2"] ** t)
                made[t - 1, k] = -stepsize * first_hat / (math.sqrt(second_hat) + options["epsilon"])
    return made


@every_case
def test_updates_follow_the_formula(kind, options):
    optimizer = optimizers.make_optimizer(kind, N_PARAMS, np.float64, np, **options)
    given, sizes = gradients(6), stepsizes(6)
    np.testing.assert_allclose(updates(optimizer, given, sizes), textbook(kind, options, given, sizes), rtol=1e-12)


@every_case
def test_updates_are_the_same_bits_for_any_blocks_in_any_order(kind, options):
    given, sizes = gradients(4), stepsizes(4)
    made = []
    for blocks in [[(0, N_PARAMS)], BLOCKS, BLOCKS[::-1], [(k, k + 1) for k in range(N_PARAMS)]]:
        made.append(updates(optimizers.make_optimizer(kind, N_PARAMS, np.float64, np, **options), given, sizes, blocks))
    assert all(np.array_equal(made[0], other) for other in made[1:])


@every_case
def test_float32_stays_float32(kind, options):
    """In state, updates and arithmetic, even where the stepsize is one of NumPy's float64 scalars."""
    optimizer, other = (optimizers.make_optimizer(kind, N_PARAMS, "float32", np, **options) for _ in range(2))
    given, sizes = gradients(6, np.float32), stepsizes(6)
    made = updates(optimizer, given, sizes)
    assert np.array_equal(made, updates(other, given, [np.float64(size) for size in sizes]))
    assert {update.dtype for update in made} == {np.dtype(np.float32)}
    arrays = [value for value in optimizer.state.values() if not isinstance(value, int)]
    assert all(array.dtype == np.float32 and array.shape == (N_PARAMS,) for array in arrays)
    np.testing.assert_allclose(made, textbook(kind, options, given, sizes), rtol=1e-5)


@every_case
def test_another_array_library_gives_the_same(kind, options):
    xp = pytest.importorskip("array_api_strict")
    given, sizes = gradients(4), stepsizes(4)
    expected = updates(optimizers.make_optimizer(kind, N_PARAMS, np.float64, np, **options), given, sizes)
    optimizer = optimizers.make_optimizer(kind, N_PARAMS, xp.float64, xp, **options)
    for gradient, stepsize, update in zip(given, sizes, expected, strict=True):
        block, out = optimizer.update(xp.asarray(gradient), stepsize), xp.zeros(N_PARAMS, dtype=xp.float64)
        for lo, hi in BLOCKS:
            block(lo, hi, out[lo:hi])
        assert np.array_equal(np.asarray(out), update)


@every_case
def test_state_goes_on_where_it_was_left(kind, options):
    given, sizes = gradients(6), stepsizes(6)
    whole = updates(optimizers.make_optimizer(kind, N_PARAMS, np.float64, np, **options), given, sizes)
    first = optimizers.make_optimizer(kind, N_PARAMS, np.float64, np, **options)
    updates(first, given[:3], sizes[:3])
    written = {name: np.array(value) for name, value in first.state.items()}
    second = optimizers.make_optimizer(kind, N_PARAMS, np.float64, np, **options)
    second.load_state(written)
    assert np.array_equal(updates(second, given[3:], sizes[3:]), whole[3:])
    for name, value in first.state.items():  # loading copied
        assert np.array_equal(written[name], value)


def test_states_have_their_names():
    made = {kind: optimizers.make_optimizer(kind, N_PARAMS, np.float64, np, **options).state for kind, options in CASES}
    names = {kind: sorted(state) for kind, state in made.items()}
    assert names == {"sgd": [], "momentum": ["velocity"], "adam": ["first_moment", "second_moment", "step"]}


@every_case
def test_a_state_that_is_not_this_optimizers_is_refused(kind, options):
    optimizer = optimizers.make_optimizer(kind, N_PARAMS, np.float64, np, **options)
    with pytest.raises(ValueError, match="optimizer state must hold"):
        optimizer.load_state({**optimizer.state, "other": 1})
    for name in optimizer.state:
        if name != "step":
            with pytest.raises(ValueError, match=rf"`{name}` .* must have shape \(11,\), got \(3,\)"):
                optimizer.load_state({**optimizer.state, name: np.zeros(3)})


def test_defaults_are_those_of_the_settings():
    given, sizes = gradients(3), stepsizes(3)
    defaults = {"momentum": {"momentum": 0.9}, "adam": {"beta1": 0.9, "beta2": 0.999, "epsilon": 1e-8}}
    for kind, options in defaults.items():
        made = updates(optimizers.make_optimizer(kind, N_PARAMS, np.float64, np), given, sizes)
        np.testing.assert_allclose(made, textbook(kind, options, given, sizes), rtol=1e-10)


def test_unknown_kinds_are_named():
    with pytest.raises(ConfigError, match=r"`optimizer\.kind` must be one of sgd, momentum, adam, got 'lion'"):
        optimizers.make_optimizer("lion", N_PARAMS, np.float64, np)
    with pytest.raises(ConfigError, match=r"`optimizer\.schedule` must be one of .*, got 'linear'"):
        schedules.make_schedule("linear", 0.1, 100)


def unknown():
    """The staleness, which most schedules must not ask for: knowing it may cost."""
    raise AssertionError("asked for the staleness")


def test_constant_schedule():
    stepsize_at = schedules.make_schedule("constant", 0.3, None)
    assert [stepsize_at(progress, unknown) for progress in (0, 1, 10**9)] == [0.3] * 3


def test_cosine_schedule():
    stepsize_at = schedules.make_schedule("cosine", 0.4, 120)
    values = [stepsize_at(progress, unknown) for progress in (0, 40, 60, 80, 120, 121, 5000)]
    assert values == pytest.approx([0.4, 0.3, 0.2, 0.1, 0.0, 0.0, 0.0], abs=1e-15)
    assert min(stepsize_at(progress, unknown) for progress in range(200)) == 0.0


def test_step_schedule():
    stepsize_at = schedules.make_schedule("step", 8.0, None, step_every=10, step_factor=0.5)
    assert [stepsize_at(progress, unknown) for progress in (0, 9, 10, 19, 20, 35)] == [8.0, 8.0, 4.0, 4.0, 2.0, 1.0]


@pytest.mark.parametrize("horizon", [9, 10, 11, 100, 20000])
def test_step_schedule_drops_after_each_third_of_the_horizon(horizon):
    stepsize_at = schedules.make_schedule("step", 1.0, horizon)
    for progress in range(horizon + 1):
        drops = sum(3 * progress >= k * horizon for k in (1, 2, 3))
        assert stepsize_at(progress, unknown) == pytest.approx(0.1**drops)


def test_staleness_adaptive_schedule():
    stepsize_at = schedules.make_schedule("staleness-adaptive", 0.6, None, concurrency=4)
    values = [stepsize_at(0, lambda staleness=staleness: staleness) for staleness in (0, 1, 4, 5, 8, 400)]
    assert values == pytest.approx([0.6, 0.6, 0.6, 0.48, 0.3, 0.006])


def test_schedules_say_what_they_need():
    with pytest.raises(ConfigError, match=r'`optimizer\.schedule` = "cosine" needs `budget\.gradients`'):
        schedules.make_schedule("cosine", 0.1, None)
    with pytest.raises(ConfigError, match=r"needs `optimizer\.step_every` or `budget\.gradients`"):
        schedules.make_schedule("step", 0.1, None)
