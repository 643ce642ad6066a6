"""A Keras 3 layer of your own that quantizes its kernel, by the function that Keras has for it and by that of qatfast.

`python examples/fake_quant_layer.py` trains the same layer with either, says whether they have the same numbers, and
how long a step takes.
"""

import statistics
import time

import keras
import numpy as np
import tensorflow as tf

import qatfast

NUM_BITS = 4
IMAGES, CHANNELS, ROUNDS = 2, 512, 15


class QuantizedConv2D(keras.layers.Conv2D):
    """A convolution whose kernel is quantized per output channel, between its smallest and its largest number.

    Args:
        fake_quant: A function of the kernel and the ends of its ranges, which are [filters].
        **kwargs: As for `keras.layers.Conv2D`.
    """

    def __init__(self, fake_quant, **kwargs):
        super().__init__(**kwargs)
        self.fake_quant = fake_quant

    def call(self, inputs):
        """Returns the convolution with the quantized kernel."""
        kernel = keras.ops.convert_to_tensor(self.kernel)
        lower, upper = keras.ops.min(kernel, axis=(0, 1, 2)), keras.ops.max(kernel, axis=(0, 1, 2))
        lower, upper = keras.ops.stop_gradient(lower), keras.ops.stop_gradient(upper)
        return self.convolution_op(inputs, self.fake_quant(kernel, lower, upper))


def of_keras(kernel, lower, upper):
    """What Keras has."""
    return keras.quantizers.fake_quant_with_min_max_vars(kernel, lower, upper, num_bits=NUM_BITS, axis=3)


def of_qatfast(kernel, lower, upper):
    """The same in one kernel."""
    return qatfast.ops.fake_quant(kernel, lower, upper, num_bits=NUM_BITS, axis=3)


def make(fake_quant):
    """A compiled model of one such layer, the same for every function."""
    keras.utils.set_random_seed(0)
    image = keras.Input((4, 4, CHANNELS))
    x = QuantizedConv2D(fake_quant, filters=CHANNELS, kernel_size=3, use_bias=False)(image)
    model = keras.Model(image, keras.layers.GlobalAveragePooling2D()(x))
    model.compile(keras.optimizers.SGD(0.01), "mean_squared_error")
    return model


def main():
    """Trains both in turns, and prints what came."""
    tf.config.experimental.enable_op_determinism()
    models = {"keras.quantizers": make(of_keras), "qatfast.ops": make(of_qatfast)}
    generator = np.random.default_rng(0)
    images = generator.normal(size=(IMAGES, 4, 4, CHANNELS)).astype(np.float32)
    targets = generator.normal(size=(IMAGES, CHANNELS)).astype(np.float32)
    seconds = {name: [] for name in models}
    for _ in range(ROUNDS):
        for name, model in models.items():
            start = time.perf_counter()
            model.train_on_batch(images, targets)
            seconds[name].append(time.perf_counter() - start)
    kernels = [model.get_weights()[0] for model in models.values()]
    print(f"kernel {list(kernels[0].shape)}, {NUM_BITS} bits per channel, {ROUNDS} training steps in turns")
    print(f"largest difference of the trained kernels: {np.abs(kernels[0] - kernels[1]).max():g}")
    for name, times in seconds.items():
        print(f"{name:16} {1e3 * statistics.median(times[3:]):6.1f} ms a step")


if __name__ == "__main__":
    main()
