"""The TensorFlow ops on GPU:0 against the same ops on the CPU, where TensorFlow has a GPU."""

import numpy as np
import pytest
import tensorflow as tf
from grid import PARAMETER_DTYPE, assert_same_bits
from kernel_cases import CASES, draw_case, forward

import qatfast
from qatfast import QATConfig, TrainingMethod

DEVICE = "GPU:0"
FEW = [(op, dtype, shape, axis) for op, dtype, shape, axis in CASES if 0 < np.prod(shape) < 40_000]

pytestmark = pytest.mark.gpu
if not tf.config.list_physical_devices("GPU"):
    pytest.skip("TensorFlow has no GPU here", allow_module_level=True)


def test_the_ops_were_built_for_a_gpu():
    assert qatfast.build_info()["cuda_architectures"], "QATFAST_CUDA=1 pip install --no-build-isolation ."


def run_on(device, op, grad_y, x, parameters, axis, watch_parameters, graph):
    """y, and the gradients to x and, if watched, to the parameters."""

    def call(grad_y, x, *parameters):
        watched = [x, *parameters] if watch_parameters else [x]
        with tf.GradientTape() as tape:
            tape.watch(watched)
            y = forward(qatfast.ops, op, x, parameters, axis=axis)
        assert graph or y.device.endswith(device)
        return y, *tape.gradient(y, watched, grad_y)

    with tf.device(device):
        tensors = [tf.constant(array) for array in (grad_y, x, *parameters)]
        results = tf.function(call)(*tensors) if graph else call(*tensors)
    return [result.numpy() for result in results]


@pytest.mark.parametrize("graph", [False, True])
@pytest.mark.parametrize(("op", "dtype", "shape", "axis"), CASES)
def test_ops_give_the_bits_that_they_give_on_the_cpu(op, dtype, shape, axis, graph):
    grad_y, x, parameters = draw_case(op, dtype, shape, axis)
    for watch_parameters in (False, True):
        run = (op, grad_y, x, parameters, axis, watch_parameters, graph)
        y, grad_x, *sums = run_on(DEVICE, *run)
        expected_y, expected_grad_x, *expected_sums = run_on("CPU:0", *run)
        assert_same_bits(y, expected_y)
        assert_same_bits(grad_x, expected_grad_x)
        # Both are exact but for one rounding, and for what cancels in sums of rounded products.
        epsilon = np.finfo(PARAMETER_DTYPE[np.dtype(dtype)]).eps
        for actual, expected in zip(sums, expected_sums, strict=True):
            others = None if axis is None else tuple(i for i in range(x.ndim) if i != axis % x.ndim)
            magnitude = 256 * np.sum(np.abs(grad_y.astype(np.float64)), axis=others)
            assert (np.abs(actual - expected) <= epsilon * (np.abs(expected) + 1e-7 * magnitude)).all()


@pytest.mark.parametrize(("op", "dtype", "shape", "axis"), FEW)
def test_gradients_are_deterministic(op, dtype, shape, axis):
    grad_y, x, parameters = draw_case(op, dtype, shape, axis)
    first = run_on(DEVICE, op, grad_y, x, parameters, axis, True, False)
    for _ in range(10):
        for got, wanted in zip(run_on(DEVICE, op, grad_y, x, parameters, axis, True, False), first, strict=True):
            assert_same_bits(got, wanted)


def test_parameters_that_cannot_be_quantized_with_give_nan():
    with tf.device(DEVICE):
        y = qatfast.ops.fake_quant(tf.ones([3, 2]), tf.constant([-1.0, 1.0]), tf.constant([1.0, -1.0]), axis=1)
    np.testing.assert_array_equal(np.isnan(y), [[False, True]] * 3)


@pytest.mark.parametrize("method", list(TrainingMethod))
def test_a_keras_model_trains_on_the_gpu(method):
    rng = np.random.default_rng(0)
    images, labels = rng.normal(size=(64, 12, 12, 3)).astype(np.float32), rng.integers(0, 4, 64)
    losses = {}
    for device in (DEVICE, "CPU:0"):
        with tf.device(device):
            tf.keras.utils.set_random_seed(1)
            layers = [
                tf.keras.layers.Conv2D(8, 3, activation="relu"),
                tf.keras.layers.Flatten(),
                tf.keras.layers.Dense(4),
            ]
            model = tf.keras.Sequential([tf.keras.Input((12, 12, 3)), *layers])
            config = QATConfig(weight_training_method=method, activation_training_method=method)
            quantized = qatfast.quantize_model(model, images, config)
            loss = tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True)
            quantized.compile(tf.keras.optimizers.SGD(0.05), loss)
            history = quantized.fit(images, labels, batch_size=16, epochs=3, shuffle=False, verbose=0).history
            losses[device] = history["loss"]
    assert losses[DEVICE][-1] < losses[DEVICE][0]
    np.testing.assert_allclose(losses[DEVICE], losses["CPU:0"], rtol=0.05)
