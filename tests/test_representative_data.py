"""How representative data is read: every form of it, batches of a fixed size, and what is refused."""

import numpy as np
import pytest
import tensorflow as tf
from models import KERAS, dense_net, layers

import qatfast
from qatfast.representative_data import representative_batches


def batches_of(data, model):
    return representative_batches(data, KERAS.functional(model), KERAS.input_names(model))


X = np.arange(240, dtype=np.float32).reshape(40, 6)


@pytest.fixture(scope="module")
def one_input():
    return dense_net()


@pytest.fixture(scope="module")
def two_inputs():
    a, b = tf.keras.Input((6,), name="a"), tf.keras.Input((2,), name="b")
    return tf.keras.Model([a, b], tf.keras.layers.Concatenate()([a, b]))


def generator():
    yield [X[:8]]
    yield [X[8:]]


@pytest.mark.parametrize(
    "data",
    [
        X,
        tf.constant(X),
        [X],
        (X,),
        {"input_1": X},
        [X[:8], X[8:16], X[16:]],
        generator,
        generator(),
        tf.data.Dataset.from_tensor_slices(X).batch(7),
        tf.data.Dataset.from_tensor_slices((X, np.zeros(40))).batch(7),
        [(X[:20], np.zeros(20)), (X[20:], np.zeros(20))],
    ],
    ids=lambda data: type(data).__name__,
)
def test_every_form_of_data_for_one_input_is_read_whole(one_input, data):
    if isinstance(data, dict):
        data = {KERAS.input_names(one_input)[0]: X}
    batches = list(batches_of(data, one_input))
    assert all(len(batch) == 1 for batch in batches)
    np.testing.assert_array_equal(np.concatenate([batch[0] for batch in batches]), X)


@pytest.mark.parametrize(
    "data",
    [
        [X, X[:, :2]],
        {"b": X[:, :2], "a": X},
        lambda: iter([[X[:8], X[:8, :2]], [X[8:], X[8:, :2]]]),
        tf.data.Dataset.from_tensor_slices({"a": X, "b": X[:, :2]}).batch(16),
        tf.data.Dataset.from_tensor_slices(((X, X[:, :2]), np.zeros(40))).batch(16),
    ],
    ids=["list", "dict", "function", "dataset of dicts", "dataset of (x, y)"],
)
def test_every_form_of_data_for_two_inputs_is_read_whole(two_inputs, data):
    batches = list(batches_of(data, two_inputs))
    np.testing.assert_array_equal(np.concatenate([batch[0] for batch in batches]), X)
    np.testing.assert_array_equal(np.concatenate([batch[1] for batch in batches]), X[:, :2])


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (X[:, :5], r"of shapes \[\(None, 6\)\], got \[\(40, 5\)\]"),
        (X[0], r"of shapes \[\(None, 6\)\], got \[\(6,\)\]"),
        ([[X, X]], "one array per model input"),
        ([{"wrong": X}], r"must have the model's inputs .*, got \['wrong'\]"),
        (tf.data.Dataset.from_tensor_slices(X).batch(4).repeat(), "must end, got an infinite dataset"),
    ],
)
def test_data_that_does_not_fit_is_refused(one_input, data, message):
    with pytest.raises(ValueError, match=f"quantize_model: .*{message}"):
        list(batches_of(data, one_input))


def test_inputs_of_different_length_are_refused(two_inputs):
    with pytest.raises(ValueError, match="one array per model input"):
        list(batches_of([X, X[:3, :2]], two_inputs))


def test_data_of_no_known_form_is_refused(one_input):
    with pytest.raises(TypeError, match="representative_data must be an array, .*, got int"):
        list(batches_of(3, one_input))


@pytest.mark.filterwarnings("ignore:When providing `inputs` as a dict")  # Keras 3 would rather have one name
def test_a_dict_goes_by_the_models_keys_as_in_fit():
    a, b = tf.keras.Input((6,), name="first"), tf.keras.Input((2,), name="second")
    model = tf.keras.Model({"v": a, "u": b}, layers.Concatenate()([a, b]))
    for keys in ("vu", ("first", "second")):
        (batch,) = batches_of(dict(zip(keys, (X[:8], X[:8, :2]), strict=True)), model)
        shapes = {KERAS.producer(tensor).name: array.shape for tensor, array in zip(model.inputs, batch, strict=True)}
        assert shapes == {"first": (8, 6), "second": (8, 2)}


def fixed_net(batch_size, features=6):
    inputs = tf.keras.Input((features,), batch_size=batch_size)
    tf.keras.utils.set_random_seed(4)
    return tf.keras.Model(inputs, layers.Dense(3)(layers.Dense(5, activation="relu")(inputs)))


def in_batches_of(size):
    return [X[start : start + size] for start in range(0, len(X), size)]


@pytest.mark.parametrize(
    ("data", "batch_size", "rows"),
    [
        (X, 8, [range(start, start + 8) for start in range(0, 40, 8)]),
        (X, 32, [range(32), [*range(32, 40), *range(24)]]),
        (X[:3], 8, [[0, 1, 2, 0, 1, 2, 0, 1]]),
        (in_batches_of(16), 8, [range(start, start + 8) for start in range(0, 40, 8)]),
        (in_batches_of(16), 16, [range(16), range(16, 32), [*range(32, 40), *range(32, 40)]]),
        (tf.data.Dataset.from_tensor_slices(X).batch(30), 30, [range(30), [*range(30, 40)] * 3]),
        (in_batches_of(20), 8, [range(8), range(8, 16), [16, 17, 18, 19, 0, 1, 2, 3]] * 2),
    ],
    ids=["divides", "remainder", "too few", "batches divide", "short last batch", "dataset", "batches of another size"],
)
def test_a_model_of_a_fixed_batch_size_gets_full_batches_of_that_size(data, batch_size, rows):
    batches = list(batches_of(data, fixed_net(batch_size)))
    second = 20 if isinstance(data, list) and len(data) == 2 else 0  # rows count from the batch of 20 that they are of
    expected = [X[[row + second * (index >= 3) for row in chosen]] for index, chosen in enumerate(rows)]
    assert len(batches) == len(expected)
    for (array,), wanted in zip(batches, expected, strict=True):
        np.testing.assert_array_equal(array, wanted)


@pytest.mark.parametrize("count", [64, 50, 20])
def test_a_fixed_batch_size_does_not_change_the_ranges(count):
    data = np.random.default_rng(0).normal(size=(count, 6)).astype(np.float32)
    fixed, free = (qatfast.quantize_model(fixed_net(size), data) for size in (32, None))
    assert fixed.input_shape == (32, 6)
    for variable, wanted in zip(fixed.variables, free.variables, strict=True):
        np.testing.assert_array_equal(variable, wanted)


def test_one_input_of_a_fixed_batch_size_is_enough():
    a, b = tf.keras.Input((6,), batch_size=25, name="a"), tf.keras.Input((2,), name="b")
    model = tf.keras.Model([a, b], layers.Concatenate()([a, b]))
    batches = list(batches_of({"a": X, "b": X[:, :2]}, model))
    assert [[array.shape for array in batch] for batch in batches] == [[(25, 6), (25, 2)]] * 2
    np.testing.assert_array_equal(batches[1][1], np.concatenate([X[25:], X[:10]])[:, :2])


def test_inputs_of_different_fixed_batch_sizes_are_refused():
    a, b = tf.keras.Input((6,), batch_size=8, name="a"), tf.keras.Input((2,), batch_size=4, name="b")
    model = tf.keras.Model([a, b], [layers.Dense(2)(a), layers.Dense(2)(b)])
    with pytest.raises(ValueError, match=r"inputs of one batch size, got \['a', 'b'\] of \[8, 4\]"):
        qatfast.quantize_model(model, [X[:8], X[:8, :2]])


def used_up():
    data = generator()
    assert len(list(data)) == 2
    return data


def empty_batches():
    while True:  # and would never end
        yield X[:0]


def needs_arguments(count, *, size):
    yield X[:count]


def raises_when_read():
    class Unreadable:
        def __array__(self, *arguments, **options):
            raise RuntimeError("on another device")

    return Unreadable()


NO_ARRAY = "a batch of representative_data must be of "
REAL = NO_ARRAY + r"real numbers for input '\w+', got "
FITTING = r"a batch of representative_data must have one array per model input, "
BAD = {
    # what is no data
    "None": (None, TypeError, "representative_data must be an array, .* got NoneType"),
    "a number": (3, TypeError, "representative_data must be an array, .* got int"),
    "a path": ("images.npy", TypeError, "representative_data must be an array, .* got str"),
    "bytes": (b"images", TypeError, "representative_data must be an array, .* got bytes"),
    "a function that returns None": (lambda: None, TypeError, "representative_data must be an array, .* got NoneType"),
    "a function that returns a function": (lambda: generator, TypeError, "must be an array, .* got function"),
    "a function with arguments": (
        needs_arguments,
        TypeError,
        r"representative_data must need no arguments if it is a function, got needs_arguments\(count, \*, size\)",
    ),
    # nothing in it
    "no batches": ([], ValueError, "representative_data must hold at least one batch, got none from a list$"),
    "no samples": (X[:0], ValueError, r"representative_data must hold at least one batch, got none .* \[\(0, 6\)\]"),
    "a used-up generator": (used_up(), ValueError, "got none from a generator, which can be read once only: pass the"),
    "a generator of empty batches": (
        empty_batches,
        ValueError,
        r"a batch of representative_data must hold at least one sample, got shapes \[\(0, 6\)\] in batch 0",
    ),
    "an empty batch among others": ([X, X[:0]], ValueError, r"must hold at least one sample, got .* in batch 1"),
    "an infinite dataset": (
        lambda: tf.data.Dataset.from_tensor_slices(X).batch(4).repeat(),
        ValueError,
        "representative_data must end, got an infinite dataset",
    ),
    # no numbers for this input
    "complex": (X + 1j * X, TypeError, REAL + "complex64"),
    "a batch of complex": ([X, X * (1 + 0j)], TypeError, REAL + "complex64 in batch 1"),
    "objects": (X.astype(object), TypeError, REAL + "object"),
    "batches of None": ([None, None], TypeError, REAL + "object in batch 0"),
    "strings": (X.astype(str), TypeError, REAL + "str"),
    "a tensor of strings": (tf.strings.as_string(X), TypeError, REAL + "object"),
    "a list of strings": (["a", "b"], TypeError, REAL + "str.* in batch 0"),
    "dates": (X.astype("datetime64[s]"), TypeError, REAL + r"datetime64\[s\]"),
    "records": (np.zeros((8, 6), [("a", "f4"), ("b", "f4")]), TypeError, REAL),
    "sparse": (tf.sparse.from_dense(X), TypeError, NO_ARRAY + "dense arrays, got SparseTensor"),
    "ragged": (tf.RaggedTensor.from_tensor(X), TypeError, NO_ARRAY + "dense arrays, got RaggedTensor"),
    "a dataset of ragged": (
        tf.data.Dataset.from_tensors(tf.RaggedTensor.from_tensor(X)),
        TypeError,
        NO_ARRAY + "dense arrays, got RaggedTensor in batch 0",
    ),
    "masked": (np.ma.masked_less(X, 3), TypeError, NO_ARRAY + "dense arrays, got MaskedArray"),
    "a symbolic tensor": (tf.keras.Input((6,)), TypeError, NO_ARRAY + "what NumPy reads as an array, got KerasTensor"),
    "what cannot be read": (
        raises_when_read(),
        TypeError,
        NO_ARRAY + "what NumPy .* got Unreadable: on another device",
    ),
    "lists of different length": ([[[[1.0], [1.0, 2.0]]]], TypeError, NO_ARRAY + "what NumPy .* got list in batch 0"),
    # of other inputs
    "unknown names": ({"wrong": X}, ValueError, r"must have the model's inputs \['\w+'\], got \['wrong'\]"),
    "batches of unknown names": ([{"wrong": X}], ValueError, r"the model's inputs .*, got \['wrong'\] in batch 0"),
    "no names": ({}, ValueError, r"must have the model's inputs .*, got \[\]"),
    "too few features": (X[:, :5], ValueError, FITTING + r"of shapes \[\(None, 6\)\], got \[\(40, 5\)\]"),
    "one sample without a batch": (X[0], ValueError, FITTING + r"of shapes .*, got \[\(6,\)\]"),
    "too many axes": (X[None], ValueError, FITTING + r"of shapes .*, got \[\(1, 40, 6\)\]"),
    "a scalar": (np.float32(3), ValueError, FITTING + r"of shapes .*, got \[\(\)\]"),
    "a dataset without batches": (
        tf.data.Dataset.from_tensor_slices(X),
        ValueError,
        FITTING + r"of shapes .*, got \[\(6,\)\] in batch 0",
    ),
    "too many arrays": ([[X, X]], ValueError, FITTING + r"of shapes .*, got \[\(40, 6\), \(40, 6\)\] in batch 0"),
    "too many items": ([(X, 1, 2, 3)], ValueError, r"must be \(x, y\) or .*, got 4 items in batch 0"),
    "an empty tuple": ([()], ValueError, r"must be \(x, y\) or .*, got 0 items in batch 0"),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_data_is_refused_with_the_argument_the_requirement_and_what_came(one_input, kind):
    data, error, message = BAD[kind]
    with pytest.raises(error, match=f"^quantize_model: .*{message}"):
        list(batches_of(data, one_input))


BAD_FOR_TWO_INPUTS = {
    "different length": ([X, X[:3, :2]], FITTING + r"all of as many samples, got shapes \[\(40, 6\), \(3, 2\)\]"),
    "batches of different length": ([[X, X[:3, :2]]], FITTING + "all of as many samples, got .* in batch 0"),
    "one of two": ([[X]], FITTING + r"of shapes .*, got \[\(40, 6\)\]"),
    "a name missing": ({"a": X}, r"must have the model's inputs \['a', 'b'\], got \['a'\]"),
    "a name too many": ({"a": X, "b": X, "c": X}, r"must have the model's inputs .*, got \['a', 'b', 'c'\]"),
    "wrong order": ([X[:, :2], X], FITTING + r"of shapes \[\(None, 6\), \(None, 2\)\], got \[\(40, 2\), \(40, 6\)\]"),
}


@pytest.mark.parametrize("kind", BAD_FOR_TWO_INPUTS)
def test_bad_data_for_two_inputs_is_refused(two_inputs, kind):
    data, message = BAD_FOR_TWO_INPUTS[kind]
    with pytest.raises(ValueError, match=f"^quantize_model: .*{message}"):
        list(batches_of(data, two_inputs))


def identity_of(dtype, shape=(6,)):
    inputs = tf.keras.Input(shape, dtype=dtype)
    return tf.keras.Model(inputs, layers.Identity()(inputs))


@pytest.mark.parametrize(
    ("dtype", "data"),
    [
        ("float32", X.astype(np.int64)),
        ("float32", X.astype(np.float64)),
        ("float32", X > 3),
        ("float32", tf.cast(X, tf.bfloat16)),
        ("float32", X.tolist),
        ("float32", tf.Variable(X)),
        ("float16", X),
        ("uint8", X),
        ("int32", X.astype(np.uint8)),
        ("bool", X > 3),
        ("bool", (X > 3).astype(np.float32)),
        ("complex64", X * 1j),
        ("complex64", X),
        ("string", X.astype(str)),
    ],
)
def test_a_type_that_an_input_takes_without_loss_is_read(dtype, data):
    if callable(data):
        data = [[data()]]
    assert sum(len(array) for (array,) in batches_of(data, identity_of(dtype))) == 40


@pytest.mark.parametrize(
    ("dtype", "data", "error", "message"),
    [
        ("uint8", X / 255, ValueError, r"must be of uint8 for input '\w+', got float32 from 0.0 to 0.9\d*"),
        ("uint8", X + 100, ValueError, "must be of uint8 .*, got float32 from 100.0 to 339.0"),
        ("uint8", X.astype(np.int8) - 1, ValueError, "must be of uint8 .*, got int8 from -128 to 127"),
        ("int32", X * np.float32(np.nan), ValueError, "must be of int32 .*, got float32 from nan to nan"),
        ("int32", X.astype(np.int64) + 2**31, ValueError, "must be of int32 .*, got int64 from 2147483648 to"),
        ("bool", X, ValueError, "must be of bool .*, got float32 from 0.0 to 239.0"),
        ("complex64", X.astype(str), TypeError, "must be of numbers for input .*, got str"),
        ("string", X, TypeError, "must be of strings for input .*, got float32"),
    ],
)
def test_numbers_that_a_cast_to_the_inputs_type_would_change_are_refused(dtype, data, error, message):
    with pytest.raises(error, match=f"^quantize_model: a batch of representative_data {message}"):
        list(batches_of(data, identity_of(dtype)))


@pytest.mark.parametrize("kind", ["complex", "a generator of empty batches", "a function with arguments"])
def test_quantize_model_refuses_bad_data(kind):
    data, error, message = BAD[kind]
    with pytest.raises(error, match=message):
        qatfast.quantize_model(dense_net(), data)
