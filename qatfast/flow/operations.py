"""What each kind of operation does to numbers, for both Kerases: one table.

Layers are named by their class, of which they may be a subclass. Functions are named as the adapter's `function_name`
names them: in Keras 2 a function of TensorFlow, as 'nn.relu', that a TFOpLambda layer calls; in Keras 3 the class of an
operation, as 'Relu', which `keras.ops.relu` leaves in a graph.
"""

from typing import NamedTuple

import numpy as np

from qatfast.flow.adapter import Call, KerasAdapter

__all__ = ["KERNEL_KINDS", "Kernel", "find_kernel", "kind", "makes_activation", "moves_numbers"]

_ACTIVATION_LAYERS = "ReLU LeakyReLU PReLU ELU ThresholdedReLU Softmax"
_MERGE_LAYERS = "Add Subtract Multiply Average Maximum Minimum Concatenate Dot"
# Which make an activation: what `a + b`, `tf.concat`, `keras.ops.relu` leave in a graph.
_ACTIVATION_FUNCTIONS = frozenset(
    # Keras 2
    "__operators__.add __operators__.sub __operators__.mul math.add math.subtract math.multiply math.maximum "
    "math.minimum math.add_n concat stack nn.relu nn.relu6 nn.leaky_relu nn.elu nn.selu nn.silu nn.swish nn.gelu "
    "nn.softmax nn.sigmoid nn.tanh math.sigmoid math.tanh math.softplus math.softmax "
    # Keras 3
    "Add Subtract Multiply Maximum Minimum Concatenate Stack Relu Relu6 LeakyRelu Elu Selu Silu Gelu Softmax Sigmoid "
    "Tanh Softplus HardSigmoid HardSilu".split()
)
# What, in inference, returns numbers that it reads, and zeros besides: both are on the grid of what it reads.
_MOVING_LAYERS = (
    "Flatten Reshape Permute RepeatVector Cropping1D Cropping2D Cropping3D ZeroPadding1D ZeroPadding2D ZeroPadding3D "
    "UpSampling1D UpSampling3D MaxPooling1D MaxPooling2D MaxPooling3D GlobalMaxPooling1D GlobalMaxPooling2D "
    "GlobalMaxPooling3D Masking ActivityRegularization Identity "
    # From here on, identity in inference.
    "Dropout AlphaDropout GaussianDropout GaussianNoise "
    "RandomBrightness RandomContrast RandomFlip RandomRotation RandomTranslation RandomZoom"
)
_RESIZING_LAYERS = "Resizing UpSampling2D"  # which move numbers unless they interpolate
_MOVING_FUNCTIONS = frozenset(
    # Keras 2
    "__operators__.getitem broadcast_to cast compat.v1.squeeze compat.v1.transpose expand_dims identity "
    "image.flip_left_right image.flip_up_down math.reduce_max nn.depth_to_space "
    "nn.max_pool2d nn.space_to_depth repeat reshape reverse roll slice split stop_gradient tile unstack "
    # Keras 3
    "GetItem BroadcastTo Cast Copy Squeeze Transpose Swapaxes Moveaxis ExpandDims Flip Max MaxPool Repeat Reshape "
    "Ravel Roll Slice Split StopGradient Tile Unstack".split()
)
_PAD_FUNCTIONS = ("compat.v1.pad", "Pad")  # the first is tf.pad, too


class Kernel(NamedTuple):
    """A kernel to quantize: the path of the layer's attributes to it, and its channel axis."""

    path: str
    axis: int


# The kinds of layers with a kernel to quantize. Conv2DTranspose is a Conv2D, so the order matters.
_KERNELS = {
    "Conv2DTranspose": Kernel("kernel", 2),
    "DepthwiseConv2D": Kernel("depthwise_kernel", 2),
    "Conv2D": Kernel("kernel", 3),
    "Dense": Kernel("kernel", 1),
}
KERNEL_KINDS = tuple(_KERNELS)


def find_kernel(keras: KerasAdapter, operation) -> Kernel | None:
    """Returns the kernel of an operation that is to be quantized; None if there is none."""
    for name, kernel in _KERNELS.items():
        if isinstance(operation, getattr(keras.layers, name)):
            return kernel._replace(path=keras.depthwise_kernel) if name == "DepthwiseConv2D" else kernel
    return None


def makes_activation(keras: KerasAdapter, operation) -> bool:
    """Whether an operation returns an activation, which hardware would quantize."""
    function = keras.function_name(operation)
    if function is not None:
        return function in _ACTIVATION_FUNCTIONS
    if isinstance(operation, keras.kinds(f"{_ACTIVATION_LAYERS} {_MERGE_LAYERS}")):
        return True
    # A recurrent layer's activation acts inside its cell; what it returns is a product of two such.
    activation = None if isinstance(operation, keras.layers.RNN) else getattr(operation, "activation", None)
    return activation is not None and not keras.is_linear(activation)


def moves_numbers(keras: KerasAdapter, call: Call) -> bool:
    """Whether a call returns nothing but numbers of the first tensor that it reads, and zeros."""
    operation, (args, kwargs), _ = call
    function = keras.function_name(operation)
    if function in _PAD_FUNCTIONS:
        return not np.any(_padding(function, args, kwargs))
    if function is not None:
        return function in _MOVING_FUNCTIONS
    if isinstance(operation, keras.layers.Activation):
        return keras.is_linear(operation.activation)
    if isinstance(operation, keras.kinds(_RESIZING_LAYERS)):
        return operation.interpolation == "nearest"
    return isinstance(operation, keras.kinds(_MOVING_LAYERS))


def kind(keras: KerasAdapter, operation) -> str:
    """What an operation is, for a sentence about what it makes."""
    if isinstance(operation, keras.layers.InputLayer):
        dtype = operation.output.dtype
        return f"an input of {getattr(dtype, 'name', dtype)}"
    function = keras.function_name(operation)
    if function is not None:
        return keras.described_function(function)
    activation = getattr(operation, "activation", None)
    is_linear = activation is not None and keras.is_linear(activation)
    return f"linear {type(operation).__name__}" if is_linear else type(operation).__name__


def _padding(function, args, kwargs):
    """The numbers that a call of a padding function pads with; reflected ones are the tensor's own."""
    position = _PAD_FUNCTIONS.index(function)
    given = args[(4, 1)[position]] if len(args) > (4, 1)[position] else None
    value = kwargs.get("constant_values", given)
    return 0 if value is None else value
