"""Errors of the package, as ranks send them to each other."""

import pickle

import pytest

from hpc_dasgd import errors

CLASSES = [value for value in vars(errors).values() if isinstance(value, type)]


@pytest.mark.parametrize("error_class", CLASSES, ids=lambda error_class: error_class.__name__)
def test_pickling_keeps_the_message_and_whether_all_ranks_raise_the_error(error_class):
    error = error_class("`stepsize` must be positive, got -0.1")
    assert not pickle.loads(pickle.dumps(error)).on_all_ranks
    error.on_all_ranks = True
    copy = pickle.loads(pickle.dumps(error))
    assert (type(copy), str(copy), copy.on_all_ranks) == (error_class, str(error), True)
    assert not error_class("another error").on_all_ranks


def test_a_config_error_is_one_line():
    assert str(errors.ConfigError("no file\n'a\nb'")) == "no file 'a b'"
