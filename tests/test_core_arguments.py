"""Every function of `_core` with every argument of a wrong kind: one message, which names the argument."""

import inspect

import ml_dtypes
import numpy as np
import pytest
from kernel_cases import _core

X = np.zeros((3, 4), np.float32)
LOW, HIGH = np.float32(-1), np.float32(1)
RANGE, THRESHOLD = {"min": LOW, "max": HIGH}, {"threshold": HIGH}
GOOD = {
    "fake_quant": {"x": X, **RANGE},
    "fake_quant_grad": {"grad_y": X, "x": X, **RANGE},
    "lsq_symmetric": {"x": X, **THRESHOLD},
    "lsq_symmetric_grad": {"grad_y": X, "x": X, **THRESHOLD},
    "lsq_uniform": {"x": X, **RANGE},
    "lsq_uniform_grad": {"grad_y": X, "x": X, **RANGE},
    "straight_through_grad": {"grad_y": X, "mask": np.zeros(2, np.uint8)},
    "memcpy": {"destination": np.zeros(4, np.float32), "source": np.zeros(4, np.float32)},
}


class Thing:
    """No kind of argument at all."""

    def __repr__(self):
        raise RuntimeError("a thing that cannot even be shown")


def kinds(requirement, *values):
    return [(value, requirement) for value in values]


ARRAYS = kinds("a NumPy array", None, "x", 1.5, [0.0], np.float32(1), Thing(), np.ndarray, memoryview(b"abcd"))
ARRAYS += [
    (np.array(["a"] * 12).reshape(3, 4), "of dtype"),
    (X.astype(object), "of dtype"),
    (X.astype(np.complex64), "of dtype"),
    (X.astype(np.int32), "of dtype"),
    (X.astype("M8[s]"), "of dtype"),
]
NUMBERS = kinds("a number or an array", None, "-1.5", b"1", [1.0], (1.0,), 1j, np.complex64(1), True, np.bool_(True))
NUMBERS += kinds("a number or an array", Thing(), np.str_("1"), {}, np.datetime64("2026-01-01"))
NUMBERS += [
    (np.array("1"), "of dtype"),
    (np.array(1, object), "of dtype"),
    (np.array(1j), "of dtype"),
    (np.array(True), "of dtype"),
]
INTEGERS = kinds("an integer", None, "8", 8.0, np.float32(8), True, np.bool_(True), [8], 8j, np.array([8]), Thing())
INTEGERS += kinds("an integer of 32 bits", 2**40, -(2**40), 2**80)
FLAGS = kinds("True or False", None, 1, 0, "no", 1.0, [True], np.array([True]), Thing())
FLOATS = kinds("a number", None, "1", [1.0], 1j, True, np.array([1.0]), np.array(1.0), Thing())
POSITIVE = [*FLOATS, *kinds("positive and finite", 0.0, -1, np.nan, np.inf, 1e-60, 1e60, 10**400)]
NOT_NEGATIVE = [*FLOATS, *kinds("finite and not negative", -1, np.nan, np.inf, 1e60)]
NOT_NEGATIVE += kinds("0 or a number of float32", 1e-60)
WRONG = {
    **dict.fromkeys(["x", "grad_y", "mask", "destination", "source"], ARRAYS),
    **dict.fromkeys(["min", "max", "threshold"], NUMBERS),
    **dict.fromkeys(["num_bits", "num_threads"], INTEGERS),
    **dict.fromkeys(
        ["narrow_range", "include_zero", "save_mask", "with_range", "signed", "power_of_two", "exact_zero"], FLAGS
    ),
    "grad_scale": POSITIVE,
    **dict.fromkeys(["min_threshold", "min_width"], NOT_NEGATIVE),
    "axis": kinds("None or an integer", "last", 1.0, True, [1], Thing()) + kinds("None or an integer of 32", 2**40),
    "out": kinds("None or a NumPy array", "x", 1.0, [0.0], np.float32(1), Thing()),
    "isa": kinds("None or an instruction set of cpu_features()", 3, b"portable", ["portable"], "\udc80", Thing()),
    "stream": kinds("None, True or False", 0, "no", 1.0, [True], Thing()),
}
# What a memcpy copies may be of any type but object.
CASES = [
    (function, argument, value, requirement)
    for function in GOOD
    for argument in inspect.signature(getattr(_core, function)).parameters
    for value, requirement in WRONG[argument]
    if not (function == "memcpy" and requirement == "of dtype")
]


@pytest.mark.parametrize(
    ("function", "argument", "value", "requirement"), CASES, ids=[f"{c[0]}-{c[1]}-{i}" for i, c in enumerate(CASES)]
)
def test_an_argument_of_a_wrong_kind_is_named(function, argument, value, requirement):
    with pytest.raises(ValueError) as raised:
        getattr(_core, function)(**(GOOD[function] | {argument: value}))
    message = str(raised.value)
    assert message.startswith(f"{function}: {argument} must be {requirement}")
    assert ", got " in message and len(message) < 300 and "incompatible" not in message


def test_every_function_has_wrong_kinds_of_every_argument():
    functions = {name for name in dir(_core) if callable(getattr(_core, name)) and not name.startswith("_")}
    assert functions == {*GOOD, "cpu_features", "build_facts"}
    for function in GOOD:
        assert len([case for case in CASES if case[0] == function]) >= 16
        getattr(_core, function)(**GOOD[function])


@pytest.mark.parametrize("function", [*GOOD, "cpu_features", "build_facts"])
def test_arguments_that_are_missing_unknown_or_given_twice_are_named(function):
    call, good = getattr(_core, function), GOOD.get(function, {})
    with pytest.raises(TypeError, match=rf"^{function}: arguments must be \(.*\), got 'bits'$"):
        call(**good, bits=8)
    with pytest.raises(TypeError, match=rf"^{function}: arguments must be \(.*\), got 5 without a name$"):
        call(*[X] * 5)
    with pytest.raises(TypeError, match=rf"^{function}: arguments must be \(.*\), got '\\udc80'$"):
        call(**good, **{"\udc80": 8})
    for name in good:
        with pytest.raises(TypeError, match=f"^{function}: {name} must be given, got nothing$"):
            call(**{key: value for key, value in good.items() if key != name})
    if good:
        with pytest.raises(TypeError, match=f"^{function}: {next(iter(good))} must be given once, got it twice$"):
            call(next(iter(good.values())), **good)


def test_python_finds_signatures_and_documentation():
    signature = inspect.signature(_core.lsq_uniform)
    assert list(signature.parameters)[:4] == ["x", "min", "max", "num_bits"]
    assert signature.parameters["num_bits"].default == 8 and signature.parameters["out"].default is None
    assert _core.lsq_uniform.__doc__.startswith("y of qatfast.ops.lsq_uniform")


@pytest.mark.parametrize(
    "number", [1, 1.0, np.float64(1), np.float16(1), np.int8(1), np.uint64(1), ml_dtypes.bfloat16(1), np.array(1, "f4")]
)
def test_any_number_is_a_parameter(number):
    expected = _core.lsq_symmetric(X + LOW, np.float32(1))
    np.testing.assert_array_equal(_core.lsq_symmetric(X + LOW, number), expected)
    np.testing.assert_array_equal(_core.lsq_symmetric(X + LOW, 1.0, num_bits=np.int64(8), signed=np.True_), expected)


def test_a_parameter_beyond_float32_is_refused():
    with pytest.raises(ValueError, match="^lsq_symmetric: threshold must be positive, finite and such.*, got inf in"):
        _core.lsq_symmetric(X, 10**400)
    with pytest.raises(ValueError, match="^fake_quant: min and max must be finite and .*, got min -inf and max 1 in"):
        _core.fake_quant(X, -(10**400), 1)


def test_what_a_number_raises_is_not_taken_for_a_number():
    class Number(int):
        def __float__(self):
            raise RuntimeError("no number today")

    with pytest.raises(RuntimeError, match="no number today"):
        _core.fake_quant(X, LOW, Number(1))


def test_flags_of_numpy_are_flags():
    for stream in (np.True_, np.False_):
        np.testing.assert_array_equal(_core.fake_quant(X, LOW, HIGH, stream=stream, save_mask=np.False_), X)


@pytest.mark.parametrize("function", ["fake_quant", "lsq_uniform"])
@pytest.mark.parametrize("range", [(0.0, 1e-36), (-1e38, 3e38)])
def test_a_range_without_a_normal_step_is_said_to_have_none(function, range):
    wanted = "finite and min less than max.*, with a step that is a normal number"
    with pytest.raises(ValueError, match=rf"^{function}: min and max must be {wanted}, got min .* and max"):
        getattr(_core, function)(X, *map(np.float32, range), num_bits=16)


@pytest.mark.parametrize("shift", [0, 4, 12])
def test_memcpy_refuses_arrays_that_overlap(shift):
    memory = np.arange(32, dtype=np.float32)
    with pytest.raises(ValueError, match="^memcpy: destination must be apart from source, got an array that overlaps"):
        _core.memcpy(memory[shift : shift + 16], memory[:16])
    np.testing.assert_array_equal(memory, np.arange(32))
    _core.memcpy(memory[16:], memory[:16], num_threads=2**31 - 1)
    np.testing.assert_array_equal(memory[16:], memory[:16])
