"""Models that compute in half precision, or in double: quantized, trained, saved, loaded, exported in float32."""

import contextlib

import numpy as np
import pytest
import tensorflow as tf
from models import (
    IS_KERAS_3,
    KERAS,
    METHODS,
    OPERATION_FORMATS,
    computed_kernel,
    conv_net,
    dense_net,
    exported,
    images,
    kernel_of,
    labels,
    layers,
    load_exported,
    weights_config,
)

import qatfast
from qatfast import TrainingMethod
from qatfast.quantizers import STEWeightsQuantizer

POLICIES = {"mixed_float16": tf.float16, "mixed_bfloat16": tf.bfloat16}
ROWS = np.random.default_rng(5).normal(size=(16, 6)).astype(np.float32)
LossScaleOptimizer = tf.keras.mixed_precision.LossScaleOptimizer


@contextlib.contextmanager
def global_policy(policy):
    tf.keras.mixed_precision.set_global_policy(policy)
    try:
        yield
    finally:
        tf.keras.mixed_precision.set_global_policy("float32")


def config(training_method, method=METHODS[0]):
    return qatfast.QATConfig(
        weight_training_method=training_method,
        activation_training_method=training_method,
        weight_n_bits=4,
        activation_n_bits=4,
        weight_quantization_method=method,
        activation_quantization_method=method,
    )


def quantizer_variables(model):
    for layer in model.layers:
        if isinstance(layer, KERAS.holder):
            yield from layer.activation_holder_quantizer.quantizer_parameters.values()
        for _, quantizer in KERAS.quantized_weights(layer):
            yield from quantizer.quantizer_parameters.values()


def is_cast(variable):
    """Whether layers read a variable in the type that they compute in."""
    return variable._autocast if IS_KERAS_3 else "AutoCast" in type(variable).__name__


def train(model, data=None, epochs=1):
    data = images() if data is None else data
    model.compile(tf.keras.optimizers.Adam(0.01), "sparse_categorical_crossentropy")
    return model.fit(data, labels(len(data)), epochs=epochs, verbose=0).history["loss"]


@pytest.fixture(
    scope="module",
    params=[(policy, method) for policy in POLICIES for method in (TrainingMethod.STE, TrainingMethod.LSQ)],
    ids=lambda param: f"{param[0]}-{param[1].name}",
)
def trained(request):
    """(policy, training method, the trained model, its losses); the global policy is float32 again."""
    policy, training_method = request.param
    with global_policy(policy):
        float_model = conv_net()
    model = qatfast.quantize_model(float_model, images(), config(training_method))
    losses = train(model, epochs=5)
    return policy, training_method, model, losses


def test_layers_keep_their_policies_and_holders_the_type_of_what_they_hold(trained):
    policy, _, model, _ = trained
    assert model.dtype_policy.name == policy
    for layer in model.layers:
        is_input = layer.name.startswith("image")
        assert layer.dtype_policy.name == ("float32" if is_input else policy), layer.name
        assert layer.output.dtype == (tf.float32 if is_input else POLICIES[policy]), layer.name
        if isinstance(layer, KERAS.holder):
            assert layer.output.dtype == layer.input.dtype


def test_variables_of_quantizers_stay_float32_wherever_they_are_read(trained):
    policy, _, model, _ = trained
    variables = list(quantizer_variables(model))
    assert len(variables) >= 8
    assert all(tf.as_dtype(variable.dtype) == tf.float32 for variable in variables)
    assert not any(map(is_cast, variables))
    assert is_cast(kernel_of(model.get_layer("conv"))[0])


def test_it_learns_and_float16_scales_the_loss(trained):
    policy, _, model, losses = trained
    assert np.all(np.isfinite(losses)) and losses[-1] < 0.7 * losses[0]
    assert isinstance(model.optimizer, LossScaleOptimizer) == (policy == "mixed_float16")
    assert all(np.isfinite(value).all() for value in model.get_weights())


def test_it_is_saved_and_loaded(trained, tmp_path):
    policy, training_method, model, _ = trained
    for suffix in OPERATION_FORMATS if training_method is TrainingMethod.LSQ else [".keras"]:
        model.save(tmp_path / f"model{suffix}")
        with global_policy(policy):
            loaded = qatfast.load_model(tmp_path / f"model{suffix}")
        np.testing.assert_array_equal(loaded(images()), model(images()))
        assert isinstance(loaded.optimizer, LossScaleOptimizer) == (policy == "mixed_float16")
        if suffix != ".h5" or policy == "mixed_bfloat16":  # Keras' .h5 has no state of a LossScaleOptimizer
            assert loaded.optimizer.iterations.numpy() == model.optimizer.iterations.numpy()
        assert all(tf.as_dtype(variable.dtype) == tf.float32 for variable in quantizer_variables(loaded))


def test_it_exports_a_float32_model_for_mct_quantizers_alone(trained, tmp_path):
    _, _, model, _ = trained
    exported = qatfast.finalize_model(model)
    assert {layer.dtype_policy.name for layer in exported.layers} == {exported.dtype_policy.name} == {"float32"}
    exported.save(tmp_path / "exported.keras")
    loaded = load_exported(tmp_path / "exported.keras")
    assert "qatfast" not in loaded.to_json()
    result = loaded(images())
    assert result.dtype == tf.float32
    # Half precision moves some activations by a step of four bits.
    np.testing.assert_allclose(result, tf.cast(model(images()), tf.float32), atol=0.1)


def test_quantized_kernels_export_as_they_were_but_for_rounding_to_half(trained):
    policy, _, model, _ = trained
    exported = qatfast.finalize_model(model)
    for name in ("conv", "depthwise", "transpose", "head"):
        kernel, quantizer = kernel_of(model.get_layer(name))
        quantized = computed_kernel(exported.get_layer(name))
        expected = quantizer(tf.cast(kernel, POLICIES[policy]))
        np.testing.assert_array_equal(tf.cast(quantized, POLICIES[policy]), expected)


@pytest.mark.parametrize("policy", POLICIES)
def test_quantizers_see_the_half_type_so_that_half_the_bytes_move(monkeypatch, policy):
    seen = []

    def record_type(x, *args, **kwargs):
        seen.append(tf.convert_to_tensor(x).dtype)
        return tf.identity(x)

    monkeypatch.setattr("qatfast.ops.fake_quant", record_type)
    with global_policy(policy):
        model = qatfast.quantize_model(dense_net(), ROWS)
    seen.clear()
    model(ROWS)
    assert seen == [tf.float32, POLICIES[policy], POLICIES[policy], POLICIES[policy]]  # the input is float32


@pytest.mark.parametrize("policy", POLICIES)
def test_ranges_are_calibrated_on_half_precision_activations_in_float32(policy):
    float_model = dense_net()
    with global_policy(policy):
        half_model = dense_net()
    thresholds = [
        np.concatenate([np.ravel(v) for v in quantizer_variables(qatfast.quantize_model(model, ROWS))])
        for model in (float_model, half_model)
    ]
    np.testing.assert_allclose(thresholds[1], thresholds[0], rtol=0.02)


cast = tf.keras.ops.cast if IS_KERAS_3 else tf.cast


def per_layer_net():
    """Every layer under a policy of its own, among them casts as a user writes them; float32 at both ends."""
    tf.keras.utils.set_random_seed(1)
    image = tf.keras.Input((8, 8, 3), name="image")
    x = layers.Conv2D(4, 3, activation="relu", dtype="mixed_float16", name="half")(image)
    x = layers.Conv2D(4, 3, activation="relu", dtype="mixed_bfloat16", name="brain")(x)
    x = layers.Conv2D(4, 3, name="single")(x)
    x = layers.ReLU(dtype="mixed_float16", name="relu")(layers.BatchNormalization(dtype="mixed_float16")(x))
    x = layers.Flatten()(cast(x, "float32") * 2.0)
    x = layers.Dense(4, dtype="mixed_bfloat16", name="head")(x)
    return tf.keras.Model(image, layers.Softmax(dtype="float32")(x), name="per_layer_net")


@pytest.mark.parametrize("training_method", TrainingMethod)
def test_policies_per_layer_are_kept(tmp_path, training_method):
    model = qatfast.quantize_model(per_layer_net(), images(), config(training_method))
    names = {"half": "mixed_float16", "brain": "mixed_bfloat16", "single": "float32", "head": "mixed_bfloat16"}
    for name, policy in names.items():
        wrapper = model.get_layer(name)
        assert wrapper.dtype_policy.name == wrapper.layer.dtype_policy.name == policy
    held = {"half": tf.float16, "brain": tf.bfloat16, "relu": tf.float16}
    for name, dtype in held.items():
        assert model.get_layer(f"{name}_activation_holder_quantizer").output.dtype == dtype
    losses = train(model, epochs=3)
    assert losses[-1] < losses[0]
    model.save(tmp_path / "model.keras")
    with pytest.warns(UserWarning, match=r"optimizer of 'per_layer_net' does not scale the loss, .* layers \['half'"):
        loaded = qatfast.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(loaded(images()), model(images()))
    exported = qatfast.finalize_model(loaded)
    np.testing.assert_allclose(exported(images()), model(images()), atol=0.1)


def test_a_wrapper_takes_the_policy_of_its_layer_and_converts_to_float32():
    for dtype in ("mixed_bfloat16", "float32"):
        quantizer = STEWeightsQuantizer(weights_config(axis=-1, threshold=np.ones(4)))
        wrapper = qatfast.KerasTrainableQuantizationWrapper(layers.Dense(4, dtype=dtype), {"kernel": quantizer})
        y = wrapper(images())
        assert wrapper.dtype_policy.name == dtype and y.dtype == wrapper.compute_dtype
        converted = exported(wrapper)
        assert converted.dtype_policy.name == getattr(converted, "layer", converted).dtype_policy.name == "float32"
        np.testing.assert_allclose(converted(images()), tf.cast(y, tf.float32), atol=0.02)


def test_layers_within_layers_are_exported_in_float32():
    with global_policy("mixed_bfloat16"):
        image = tf.keras.Input((4, 6))
        x = layers.Bidirectional(layers.LSTM(3, return_sequences=True))(image)
        model = tf.keras.Model(image, layers.Dense(2)(layers.TimeDistributed(layers.Dense(3, activation="relu"))(x)))
    with pytest.warns(UserWarning, match="stay in float"):
        quantized = qatfast.quantize_model(model, np.zeros((2, 4, 6), np.float32))
    exported = qatfast.finalize_model(quantized)
    assert "bfloat16" not in exported.to_json()
    assert exported(np.zeros((2, 4, 6), np.float32)).dtype == tf.float32


@pytest.mark.parametrize("training_method", TrainingMethod)
@pytest.mark.parametrize("floatx", ["float64", "float16"])
def test_a_model_of_one_other_type_trains_and_exports_in_float32(floatx, training_method):
    dtype = {"dtype": floatx}
    stack = [layers.Dense(5, activation="relu", **dtype), layers.Dense(4, activation="softmax", **dtype)]
    model = tf.keras.Sequential([tf.keras.Input((6,), dtype=floatx), *stack])
    quantized = qatfast.quantize_model(model, ROWS, config(training_method))
    wanted = tf.float64 if floatx == "float64" else tf.float32
    assert {tf.as_dtype(variable.dtype) for variable in quantizer_variables(quantized)} == {wanted}
    losses = train(quantized, ROWS, epochs=2)
    assert np.all(np.isfinite(losses))
    exported = qatfast.finalize_model(quantized)
    assert exported.output.dtype == tf.float32
    np.testing.assert_allclose(exported(ROWS), quantized(ROWS), atol=0.1)


def test_loss_scaling_comes_back_from_a_keras_file_whatever_the_global_policy_is(tmp_path):
    def steps(model):
        model.reset_metrics()  # over which Keras 3.10 takes the mean of the losses
        return [model.train_on_batch(images(), labels()) for _ in range(3)]

    with global_policy("mixed_float16"):
        model = qatfast.quantize_model(conv_net(), images(), config(TrainingMethod.LSQ))
        model.compile(tf.keras.optimizers.Adam(0.01), "sparse_categorical_crossentropy")
    steps(model)
    model.save(tmp_path / "model.keras")
    loaded = qatfast.load_model(tmp_path / "model.keras")
    assert loaded.dtype_policy.name == "mixed_float16"
    assert isinstance(loaded.optimizer, LossScaleOptimizer)
    assert steps(loaded) == steps(model)
