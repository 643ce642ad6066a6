"""Kernels that read a tensor in float: which they are, and the warning that names them."""

import re
import warnings

import numpy as np
import pytest
import tensorflow as tf
from models import IS_KERAS_3, KERAS, conv_net, images, layers

import qatfast
from qatfast.flow.graph import all_operations
from qatfast.flow.placement import activation_points, float_inputs

WARNING = "quantize_model: inputs of quantized kernels stay in float"
# One input per call of a layer with a quantized kernel. Padding with zeros, reshaping and dropout stay on the grid of
# what they read: MobileNetV2's 4 kernels after ZeroPadding2D of a ReLU read quantized numbers, and so do 4 of
# EfficientNetB0's, while its 16 behind Reshape and the one behind Dropout read an average.
APPLICATIONS = {
    "MobileNetV2": {"BatchNormalization": 7, "GlobalAveragePooling2D": 1},
    "EfficientNetB0": {"Normalization": 1, "GlobalAveragePooling2D": 17, "BatchNormalization": 7},
    "ConvNeXtTiny": {"Normalization": 1, "LayerNormalization": 23, "linear Conv2D": 3},
}
COUNTS = {"MobileNetV2": 8, "EfficientNetB0": 25, "ConvNeXtTiny": 27}


def warned(model, data, **config):
    """(The count that the warning gives, names of layers by what makes their input); (0, {}) without a warning."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        if data is None:  # the warning comes before the data is looked at: big models need not compute anything
            with pytest.raises(TypeError, match="representative_data"):
                qatfast.quantize_model(model, data, qatfast.QATConfig(**config))
        else:
            qatfast.quantize_model(model, data, qatfast.QATConfig(**config))
    messages = [str(warning.message) for warning in caught if str(warning.message).startswith(WARNING)]
    assert len(messages) <= 1
    if not messages:
        return 0, {}
    count, listed = re.fullmatch(rf"{WARNING} \((\d+)\): (.*?)\. Training needs no change; .*", messages[0]).groups()
    named = dict(part.split(" makes those of ") for part in listed.split("; "))
    return int(count), {kind: readers.split(", ") for kind, readers in named.items()}


@pytest.mark.parametrize("name", APPLICATIONS)
def test_every_kernel_of_a_well_known_model_that_reads_float_is_named(name):
    model = getattr(tf.keras.applications, name)(weights=None, input_shape=(32, 32, 3), classes=10)
    count, named = warned(model, None)
    assert count == COUNTS[name]
    names = {layer.name for layer in all_operations(KERAS, model)}
    assert all(names.issuperset(readers) for readers in named.values())
    assert {kind: len(readers) for kind, readers in named.items()} == APPLICATIONS[name]


def test_the_warning_says_what_is_read_where_and_what_to_do():
    with pytest.warns(UserWarning, match=WARNING) as caught:
        qatfast.quantize_model(conv_net(), images())
    (warning,) = (warning for warning in caught if str(warning.message).startswith(WARNING))
    assert warning.filename == __file__
    assert str(warning.message) == (
        f"{WARNING} (1): linear Conv2DTranspose makes those of head. Training needs no change; hardware that computes "
        "in integers would have to compute the layers that read them in float."
    )


def net(*stack, shape=(8, 8, 4), dtype=None):
    """A model of the layers and functions, then a kernel that reads what they make."""
    inputs = x = tf.keras.Input(shape, dtype=dtype, name="input")
    for layer in stack:
        x = layer(x)
    return tf.keras.Model(inputs, layers.Dense(2, name="head")(x))


if IS_KERAS_3:
    ops = KERAS.api.ops
    FLOAT_FUNCTIONS = [
        ([lambda: ops.sqrt], "the operation Sqrt"),
        ([lambda: lambda x: ops.pad(x, [[0, 0], [1, 1], [1, 1], [0, 0]], constant_values=1.0)], "the operation Pad"),
    ]
else:
    FLOAT_FUNCTIONS = [
        ([lambda: tf.sqrt], "tf.math.sqrt"),
        ([lambda: lambda x: tf.pad(x, [[0, 0], [1, 1], [1, 1], [0, 0]], constant_values=1.0)], "tf.compat.v1.pad"),
    ]


@pytest.mark.parametrize(
    ("stack", "kind"),
    [
        ([layers.BatchNormalization], "BatchNormalization"),
        ([layers.LayerNormalization], "LayerNormalization"),
        ([lambda: layers.Rescaling(1 / 255)], "Rescaling"),
        ([lambda: layers.AveragePooling2D(2), layers.Flatten], "AveragePooling2D"),
        ([lambda: layers.Conv2D(3, 2), layers.Flatten], "linear Conv2D"),
        ([lambda: layers.Dense(3)], "linear Dense"),
        ([lambda: layers.UpSampling2D(interpolation="bilinear")], "UpSampling2D"),
        ([lambda: layers.Resizing(4, 4)], "Resizing"),
        ([lambda: layers.Lambda(tf.abs, output_shape=lambda shape: shape)], "Lambda"),
        ([lambda: lambda x: x / 3.0], "the operation TrueDivide" if IS_KERAS_3 else "tf.math.truediv"),
        *FLOAT_FUNCTIONS,
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_makes_a_float_input_is_named(stack, kind):
    data = np.random.default_rng(0).random((2, 8, 8, 4), np.float32)
    model = net(*(make() for make in stack))
    assert warned(model, data) == (1, {kind: ["head"]})


@pytest.mark.parametrize(
    "read",
    [layers.Flatten(), (lambda x: ops.cast(x, "float32")) if IS_KERAS_3 else (lambda x: tf.cast(x, tf.float32))],
    ids=["cast by Keras", "cast"],
)
def test_an_input_of_integers_is_named(read):
    model = net(read, layers.ReLU(), layers.Dense(3, activation="relu"), dtype="uint8")
    model = tf.keras.Model(model.input, layers.Dense(2, name="direct")(read(model.input)))
    assert warned(model, np.ones((2, 8, 8, 4), np.uint8)) == (1, {"an input of uint8": ["direct"]})


MOVING = [
    layers.Flatten(),
    layers.Reshape((4, 16, 4)),
    layers.Permute((2, 1, 3)),
    layers.Cropping2D(1),
    layers.ZeroPadding2D(1),
    layers.UpSampling2D(2),
    layers.Resizing(5, 11, interpolation="nearest"),
    layers.MaxPooling2D(3, padding="same"),
    layers.GlobalMaxPooling2D(),
    layers.Masking(0.0),
    layers.ActivityRegularization(0.1),
    layers.Dropout(0.5),
    layers.SpatialDropout2D(0.5),
    layers.AlphaDropout(0.5),
    layers.GaussianDropout(0.5),
    layers.GaussianNoise(0.5),
    layers.RandomBrightness(0.5),
    layers.RandomContrast(0.5),
    layers.RandomFlip(),
    layers.RandomRotation(0.5),
    layers.RandomTranslation(0.5, 0.5),
    layers.RandomZoom(0.5),
    layers.Activation("linear"),
]
MOVING_OTHER_RANKS = {
    (4,): [layers.RepeatVector(3)],
    (9, 4): [
        layers.Cropping1D(1),
        layers.ZeroPadding1D(1),
        layers.UpSampling1D(2),
        layers.MaxPooling1D(2, padding="same"),
        layers.GlobalMaxPooling1D(),
        layers.SpatialDropout1D(0.5),
    ],
    (4, 4, 4, 2): [
        layers.Cropping3D(1),
        layers.ZeroPadding3D(1),
        layers.UpSampling3D(2),
        layers.MaxPooling3D(3, padding="same"),
        layers.GlobalMaxPooling3D(),
        layers.SpatialDropout3D(0.5),
    ],
}
PADDINGS = [[0, 0], [1, 1], [1, 1], [0, 0]]
MOVING_FUNCTIONS_OF_KERAS_2 = {
    "reshape": lambda x: tf.reshape(x, [-1, 4, 16, 4]),
    "reshape by keywords": lambda x: tf.reshape(tensor=x, shape=[-1, 256]),
    "transpose": lambda x: tf.transpose(x, [0, 2, 1, 3]),
    "expand_dims": lambda x: tf.expand_dims(x, 1),
    "squeeze": lambda x: tf.squeeze(x[:, :1], 1),
    "identity": tf.identity,
    "stop_gradient": tf.stop_gradient,
    "cast": lambda x: tf.cast(x, tf.float64),
    "getitem": lambda x: x[:, 1:, ::2],
    "slice": lambda x: tf.slice(x, [0, 1, 1, 0], [-1, 3, 3, 4]),
    "split": lambda x: tf.split(x, 2, axis=1)[1],
    "unstack": lambda x: tf.unstack(x, axis=1)[2],
    "tile": lambda x: tf.tile(x, [1, 2, 1, 1]),
    "repeat": lambda x: tf.repeat(x, 2, axis=1),
    "broadcast_to": lambda x: tf.broadcast_to(x[:, :1], [2, 8, 8, 4]),
    "reverse": lambda x: tf.reverse(x, [1]),
    "flip_left_right": tf.image.flip_left_right,
    "flip_up_down": tf.image.flip_up_down,
    "roll": lambda x: tf.roll(x, 1, axis=1),
    "pad": lambda x: tf.pad(x, PADDINGS),
    "pad with zeros": lambda x: tf.pad(x, PADDINGS, "CONSTANT", 0.0),
    "pad by mirror": lambda x: tf.pad(x, PADDINGS, mode="REFLECT"),
    "max_pool": lambda x: tf.nn.max_pool2d(x, 3, 2, "SAME"),
    "reduce_max": lambda x: tf.reduce_max(x, [1, 2]),
    "depth_to_space": lambda x: tf.nn.depth_to_space(x, 2),
    "space_to_depth": lambda x: tf.nn.space_to_depth(x, 2),
}
MOVING_FUNCTIONS_OF_KERAS_3 = {
    "reshape": lambda x: ops.reshape(x, [-1, 4, 16, 4]),
    "transpose": lambda x: ops.transpose(x, [0, 2, 1, 3]),
    "swapaxes": lambda x: ops.swapaxes(x, 1, 3),
    "moveaxis": lambda x: ops.moveaxis(x, 1, 3),
    "expand_dims": lambda x: ops.expand_dims(x, 1),
    "squeeze": lambda x: ops.squeeze(x[:, :1], 1),
    "copy": lambda x: ops.copy(x),
    "stop_gradient": lambda x: ops.stop_gradient(x),
    "cast": lambda x: ops.cast(x, "float64"),
    "getitem": lambda x: x[:, 1:, ::2],
    "slice": lambda x: ops.slice(x, [0, 1, 1, 0], [2, 3, 3, 4]),
    "split": lambda x: ops.split(x, 2, axis=1)[1],
    "unstack": lambda x: ops.unstack(x, axis=1)[2],
    "tile": lambda x: ops.tile(x, [1, 2, 1, 1]),
    "repeat": lambda x: ops.repeat(x, 2, axis=1),
    "broadcast_to": lambda x: ops.broadcast_to(x[:, :1], [2, 8, 8, 4]),
    "flip": lambda x: ops.flip(x, 1),
    "roll": lambda x: ops.roll(x, 1, axis=1),
    "pad": lambda x: ops.pad(x, PADDINGS),
    "pad with zeros": lambda x: ops.pad(x, PADDINGS, "constant", 0.0),
    "pad by mirror": lambda x: ops.pad(x, PADDINGS, mode="reflect"),
    "max_pool": lambda x: ops.max_pool(x, 3, 2, "same"),
    "max": lambda x: ops.max(x, [1, 2]),
}
MOVING_FUNCTIONS = MOVING_FUNCTIONS_OF_KERAS_3 if IS_KERAS_3 else MOVING_FUNCTIONS_OF_KERAS_2


@pytest.mark.parametrize(
    ("shape", "move"),
    [
        *(pytest.param((8, 8, 4), layer, id=type(layer).__name__) for layer in MOVING),
        *(
            pytest.param(s, layer, id=type(layer).__name__)
            for s, several in MOVING_OTHER_RANKS.items()
            for layer in several
        ),
        *(pytest.param((8, 8, 4), function, id=name) for name, function in MOVING_FUNCTIONS.items()),
    ],
)
def test_what_only_moves_numbers_leaves_a_kernels_input_on_the_grid(shape, move):
    values = np.array([-0.75, -0.5, -0.25, 0.25, 0.5], np.float32)
    data = np.random.default_rng(0).choice(values, (2, *shape))
    model = net(move, shape=shape)
    moved = tf.keras.Model(model.input, model.get_layer("head").input)(data, training=False)
    assert set(np.unique(moved)) <= {*values, 0.0}
    points = activation_points(KERAS, model, quantize_input=True, float_layers=())
    assert [point.operation.name for point in points] == ["input"]
    assert float_inputs(KERAS, model, [model.get_layer("head")], points) == []
    ((reader, maker),) = float_inputs(KERAS, model, [model.get_layer("head")], [])
    assert (reader.name, maker.name) == ("head", "input")  # looked for behind what moves its numbers


def test_what_the_user_leaves_in_float_is_not_named():
    data = np.ones((2, 8, 8, 4), np.float32)
    assert warned(net(layers.Flatten()), data, quantize_input=False) == (0, {})
    norm = net(layers.BatchNormalization(name="norm"), layers.Flatten())
    assert warned(norm, data, float_layers=["norm"]) == (0, {})
    relu = net(layers.ReLU(name="relu"), layers.MaxPooling2D())
    assert warned(relu, data, float_layers=["relu"]) == (0, {})
    linear = net(layers.Dense(3, name="body"))
    assert warned(linear, data, float_layers=["head"]) == (0, {})


def test_an_input_is_counted_for_every_call_and_its_layer_named_once():
    inputs = tf.keras.Input((6,))
    shared = layers.Dense(3, name="shared")
    read = [shared(layers.LayerNormalization()(inputs)), shared(layers.LayerNormalization()(inputs))]
    model = tf.keras.Model(inputs, [*read, shared(inputs)])
    assert warned(model, np.ones((2, 6), np.float32)) == (2, {"LayerNormalization": ["shared"]})
