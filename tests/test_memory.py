"""What is traced is let go with its graph: nothing of the package, or registered by it, keeps a graph alive."""

import functools
import gc
import tracemalloc
import weakref

import numpy as np
import pytest
import tensorflow as tf
from models import SAVE_FORMATS, dense_net

import qatfast

OPS = {"fake_quant": (-1.0, 1.0), "lsq_symmetric": (1.0,), "lsq_uniform": (-1.0, 1.0)}
STOCK = tf.quantization.fake_quant_with_min_max_vars
WARM_UP = 5


def trace(function, parameters, jit=False):
    """Runs a new `tf.function` of y and all gradients, with a constant of 1 MB in it; returns its graph, weakly."""
    constant = np.random.default_rng(0).normal(size=2**18).astype(np.float32)

    @tf.function(jit_compile=jit)
    def run(x, *parameters):
        with tf.GradientTape() as tape:
            tape.watch([x, *parameters])
            y = function(x + constant[0], *parameters) + tf.reduce_sum(constant)
        return y, tape.gradient(y, [x, *parameters])

    run(tf.zeros([3]), *map(tf.constant, parameters))
    return weakref.ref(run.get_concrete_function(tf.zeros([3]), *map(tf.constant, parameters)).graph)


@pytest.mark.parametrize("jit", [False, True])
@pytest.mark.parametrize("op", OPS)
def test_a_graph_dies_with_its_function(backend, op, jit):
    graph = trace(backend(op), OPS[op], jit)
    gc.collect()
    assert graph() is None


def growth_per_call(function, calls):
    """Bytes of Python objects that a call leaves behind."""
    for _ in range(WARM_UP):
        function()
    gc.collect()
    tracemalloc.start()
    try:
        for _ in range(calls):
            function()
        gc.collect()
        return tracemalloc.get_traced_memory()[0] / calls
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("op", OPS)
def test_a_trace_leaves_next_to_nothing(native, op):
    """At most 4 KiB more than TensorFlow's own op."""
    of_stock = growth_per_call(lambda: trace(STOCK, (-1.0, 1.0)), calls=30)
    assert growth_per_call(lambda: trace(native(op), OPS[op]), calls=30) <= of_stock + 4096


def test_an_eager_gradient_leaves_no_more_than_the_stock_op_s(native):
    """TensorFlow 2.15 itself leaves 24 bytes of each op that is run eagerly."""

    def differentiate(function, parameters):
        inputs = [tf.zeros([3]), *map(tf.constant, parameters)]
        with tf.GradientTape() as tape:
            tape.watch(inputs)
            y = function(*inputs)
        tape.gradient(y, inputs)

    stock = functools.partial(differentiate, STOCK, (-1.0, 1.0))
    of_stock = growth_per_call(stock, calls=300)
    for op, parameters in OPS.items():
        ours = functools.partial(differentiate, native(op), parameters)
        assert growth_per_call(ours, calls=300) <= 2 * of_stock + 128


def survivors(model, path):
    """What is left of a model and its layers, and of those that its file makes, once all were trained and let go."""
    data = np.random.default_rng(0).normal(size=(16, 6)).astype(np.float32)
    model.compile("sgd", "mse")
    model.fit(data, np.zeros((16, 3)), verbose=0)
    model.save(path)
    loaded = qatfast.load_model(path)
    loaded.fit(data, np.zeros((16, 3)), verbose=0)
    kept = [weakref.ref(object) for object in (model, *model.layers, loaded, *loaded.layers)]
    del model, loaded
    tf.keras.backend.clear_session()
    gc.collect()
    return [reference() for reference in kept if reference() is not None]


@pytest.mark.parametrize("method", list(qatfast.TrainingMethod))
def test_a_quantized_model_dies_with_its_last_user(method, tmp_path):
    """Also one that was trained, saved and loaded."""
    config = qatfast.QATConfig(weight_training_method=method, activation_training_method=method)
    data = np.random.default_rng(0).normal(size=(16, 6)).astype(np.float32)
    if survivors(dense_net(), str(tmp_path / f"float{SAVE_FORMATS[-1]}")):
        pytest.skip(f"TensorFlow {tf.__version__} keeps float models, too")
    left = survivors(qatfast.quantize_model(dense_net(), data, config), str(tmp_path / f"quantized{SAVE_FORMATS[-1]}"))
    assert left == []
