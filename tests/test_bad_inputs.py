"""A table of what is no input of the ops: each row is refused by a sentence that names op, argument and requirement."""

import datetime
import decimal
import fractions
import itertools
import re

import numpy as np
import pytest
import tensorflow as tf

PARAMETERS = {"fake_quant": ("min", "max"), "lsq_symmetric": ("threshold",), "lsq_uniform": ("min", "max")}
GOOD = {"x": np.ones((2, 3), np.float32), "min": -1.0, "max": 1.0, "threshold": 1.0}

# What is no tensor of numbers, made anew for each row.
NO_NUMBERS = {
    "None": lambda: None,
    "a string": lambda: "-1.5",
    "bytes": lambda: b"1.5",
    "a complex number": lambda: 1 + 2j,
    "a complex NumPy number": lambda: np.complex64(1 + 2j),
    "a complex array": lambda: np.array([1 + 2j, 1.0]),
    "a complex tensor": lambda: tf.constant(1 + 2j),
    "a bool": lambda: True,
    "a bool array": lambda: np.array([True, False]),
    "a bool tensor": lambda: tf.constant(True),
    "an object": object,
    "an array of objects": lambda: np.array([1.0, None], object),
    "an array of number objects": lambda: np.array([1.0, 2.0], object),
    "a dict": lambda: {"value": 1.0},
    "a set": lambda: {1.0},
    "a function": lambda: abs,
    "a class": lambda: float,
    "a generator": lambda: (value for value in [1.0]),
    "a list with None": lambda: [1.0, None],
    "a list of strings": lambda: ["1.0"],
    "a list that is not rectangular": lambda: [[1.0], [1.0, 2.0]],
    "a string array": lambda: np.array(["1.0"]),
    "a string tensor": lambda: tf.constant("1.0"),
    "an integer tensor": lambda: tf.constant(1),
    "a tensor of 8 bits": lambda: tf.constant(1, tf.uint8),
    "a ragged tensor": lambda: tf.ragged.constant([[1.0], [2.0, 3.0]]),
    "a sparse tensor": lambda: tf.sparse.from_dense([[1.0, 0.0]]),
    "slices": lambda: tf.IndexedSlices(tf.ones([1, 2]), tf.constant([0])),
    "a specification": lambda: tf.TensorSpec([2]),
    "a TensorArray": lambda: tf.TensorArray(tf.float32, 1),
    "a dataset": lambda: tf.data.Dataset.range(3),
    "a date": lambda: np.datetime64("2020-01-01"),
    "a Python date": lambda: datetime.date(2020, 1, 1),
    "a structured array": lambda: np.zeros(2, [("a", "f4")]),
    "a decimal": lambda: decimal.Decimal("1.5"),
    "a fraction": lambda: fractions.Fraction(1, 2),
    "an ellipsis": lambda: ...,
}
# Values of attributes that are refused.
INTEGERS = [None, "8", 8.5, 8.0, True, [8], np.array([8, 8]), float("nan")]
BOOLS = [None, 0, 1, "yes", 0.5, [True], np.array([True, False])]
POSITIVE = [None, 0, 0.0, -1.0, "1", True, float("nan"), float("inf"), 1e-50, 1e39, 1j, [1.0]]
NOT_NEGATIVE = [None, -1.0, "0", True, float("nan"), float("inf"), 1e-50, 1e39, 1j, [0.0]]
ATTRIBUTES = {
    "fake_quant": {
        "num_bits": [*INTEGERS, 1, 17, 0, -8, 10**20],
        "axis": [*INTEGERS[1:], 2, -3],
        "narrow_range": BOOLS,
        "include_zero": BOOLS,
    },
    "lsq_symmetric": {
        "num_bits": [*INTEGERS, 1, 17],
        "axis": [*INTEGERS[1:], 2, -3],
        "signed": BOOLS,
        "power_of_two": BOOLS,
        "grad_scale": POSITIVE,
        "min_threshold": NOT_NEGATIVE,
    },
    "lsq_uniform": {
        "num_bits": [*INTEGERS, 1, 17],
        "axis": [*INTEGERS[1:], 2, -3],
        "grad_scale": POSITIVE,
        "min_width": NOT_NEGATIVE,
    },
}
# Shapes of parameters that do not fit x, with an axis and without.
SHAPES = [({}, (1,)), ({}, (1, 1)), ({"axis": 1}, ()), ({"axis": 1}, (2,)), ({"axis": -1}, (4,)), ({"axis": 0}, (2, 1))]

TABLE = [
    *((op, argument, kind) for op in PARAMETERS for argument in ("x", *PARAMETERS[op]) for kind in NO_NUMBERS),
    *(
        (op, argument, value)
        for op, attributes in ATTRIBUTES.items()
        for argument, values in attributes.items()
        for value in values
    ),
]


def call(function, op, **changed):
    arguments = {name: GOOD[name] for name in ("x", *PARAMETERS[op])} | changed
    return function(arguments.pop("x"), *(arguments.pop(name) for name in PARAMETERS[op]), **arguments)


def call_in_graph(function, op, changed):
    return tf.function(lambda: call(function, op, **changed))()


def assert_refused(function, op, argument, **changed):
    """Calls the function with changed arguments, and checks what the refusal says."""
    with pytest.raises((TypeError, ValueError)) as raised:
        call(function, op, **changed)
    pattern = rf"{op}: {argument} must be .+, got .+"
    assert re.search(pattern, str(raised.value), re.DOTALL), str(raised.value)


def test_the_table_has_at_least_200_rows():
    assert len(TABLE) >= 200


@pytest.mark.parametrize(("op", "argument", "bad"), TABLE, ids=lambda value: str(value)[:30])
def test_a_bad_input_is_named(backend, op, argument, bad):
    value = NO_NUMBERS[bad]() if isinstance(bad, str) and bad in NO_NUMBERS else bad
    assert_refused(backend(op), op, argument, **{argument: value})


@pytest.mark.parametrize(("op", "case"), list(itertools.product(PARAMETERS, SHAPES)))
def test_a_shape_that_does_not_fit_is_named(backend, op, case):
    attributes, shape = case
    good = np.ones([GOOD["x"].shape[attributes["axis"]]] if attributes else [], np.float32)
    parameters = dict.fromkeys(PARAMETERS[op], good)
    for argument in PARAMETERS[op]:
        changed = {**parameters, argument: np.ones(shape, np.float32), **attributes}
        assert_refused(backend(op), op, argument, **changed)


@pytest.mark.parametrize("op", PARAMETERS)
def test_a_bad_input_is_named_in_a_graph_too(backend, op):
    for argument, kind in itertools.product(("x", *PARAMETERS[op]), NO_NUMBERS):
        bad = {argument: NO_NUMBERS[kind]()}
        with pytest.raises(TypeError, match=f"{op}: {argument} must be "):
            call_in_graph(backend(op), op, bad)
