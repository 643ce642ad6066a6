"""Chooses quantization ranges: from what a model computes on representative data, and from its kernels."""

from collections.abc import Callable, Iterable, Iterator, Mapping

import numpy as np
import tensorflow as tf
from mct_quantizers import QuantizationMethod
from tqdm import tqdm

from qatfast.config import RANGE_MAX, RANGE_MIN, SIGNED, THRESHOLD, CalibrationMethod, QATConfig
from qatfast.quantizers.ranges import power_of_two_threshold

__all__ = ["Histogram", "activation_params", "observe", "representative_batches", "weight_params"]

_BATCH_SIZE = 32
_COARSE_FACTORS = np.linspace(0.05, 1.0, 20)
_FINE_FACTORS = np.linspace(-0.045, 0.045, 10)
_POWER_OF_TWO_FACTORS = 2.0 ** -np.arange(10)


class Histogram:
    """Counts of values between -limit and limit, in bins of equal width; min and max besides, exactly.

    The limit is a power of two. It doubles, and pairs of bins merge, when larger values arrive: one pass over the
    data is enough, however the data is ordered.
    """

    BINS = 4096

    def __init__(self):
        self.min, self.max = np.inf, -np.inf
        self.limit = None
        self.counts = np.zeros(self.BINS, np.int64)

    def add(self, values: np.ndarray) -> None:
        """Counts an array of finite float32 values of any shape."""
        if values.size == 0:
            return
        low, high = float(values.min()), float(values.max())
        self.min, self.max = min(self.min, low), max(self.max, high)
        needed = max(-low, high)
        if self.limit is None:
            self.limit = 2.0 ** np.frexp(needed)[1]
        while self.limit < needed:
            merged = self.counts.reshape(-1, 2).sum(axis=1)
            self.counts = np.pad(merged, self.BINS // 4)
            self.limit *= 2
        index = ((values.ravel() / self.limit + 1.0) * (self.BINS // 2)).astype(np.int64)
        self.counts += np.bincount(np.minimum(index, self.BINS - 1), minlength=self.BINS)

    @property
    def centers(self) -> np.ndarray:
        """The middle of every bin, float64."""
        return ((np.arange(self.BINS) + 0.5) / (self.BINS // 2) - 1.0) * (self.limit or 1.0)


def observe(model: tf.keras.Model, points, batches: Iterable[list[np.ndarray]]) -> list[Histogram]:
    """Runs the model, in inference mode, on all batches, under a progress bar.

    Args:
        model: The float model.
        points: `graph.ActivationPoint`s of the model.
        batches: One array per model input each; see `representative_batches`.

    Returns:
        The histogram of every point's tensor.

    Raises:
        ValueError: A tensor is not finite, or there are no batches.
    """
    observer = tf.keras.Model(model.inputs, [point.tensor for point in points])
    histograms = [Histogram() for _ in points]
    count = 0
    for batch in tqdm(batches, desc="Calibrating activations", unit="batch"):
        outputs = tf.nest.flatten(observer.predict_on_batch(batch))
        for point, output, histogram in zip(points, outputs, histograms, strict=True):
            values = np.asarray(output, np.float32)  # of half precision in mixed-precision models
            if not (np.isfinite(values.min()) and np.isfinite(values.max())):
                raise ValueError(
                    f"quantize_model: the output of layer {point.layer.name!r} must be finite on representative_data, "
                    f"got NaN or infinity in batch {count}"
                )
            histogram.add(values)
        count += 1
    if not count:
        raise ValueError("quantize_model: representative_data must hold at least one batch, got none")
    return histograms


def representative_batches(data, model: tf.keras.Model) -> Iterator[list[np.ndarray]]:
    """Yields batches, one array per input of `model`, from any form of representative data.

    Args:
        data: One of
            - an array (one input), a list or tuple of arrays (one per input), or a dict of arrays by input name;
            - a function without arguments that returns an iterable of batches (MCT's `representative_data_gen`);
            - an iterable of batches, such as a `tf.data.Dataset` or a generator.
            A batch is an array, a list of arrays or a dict, as above, or a tuple (x, y) or (x, y, sample_weight) as in
            Keras' `fit`, of which x is taken.
        model: The model that is to read them.

    Raises:
        TypeError: `data` is none of these.
        ValueError: A batch does not fit the model's inputs, or a dataset is infinite.
    """
    if isinstance(data, Callable):
        data = data()
    if _is_array(data):
        yield from _split([_to_numpy(data)], model)
    elif isinstance(data, Mapping):
        yield from _split(_arrays(data, model), model)
    elif isinstance(data, (list, tuple)) and len(data) == len(model.inputs) and all(map(_is_array, data)):
        yield from _split([_to_numpy(array) for array in data], model)
    elif isinstance(data, Iterable):
        if isinstance(data, tf.data.Dataset) and data.cardinality() == tf.data.INFINITE_CARDINALITY:
            raise ValueError("quantize_model: representative_data must end, got an infinite dataset: use take(n)")
        for batch in data:
            arrays = _arrays(batch, model)
            _check_batch(arrays, model)
            yield arrays
    else:
        raise TypeError(
            f"quantize_model: representative_data must be an array, arrays by input, an iterable of batches or a "
            f"function that returns one, got {type(data).__name__}"
        )


def activation_params(histogram: Histogram, config: QATConfig) -> dict:
    """Returns the quantization params of an activation with these values: floats, and 'is_signed' if symmetric."""
    lower, upper = np.array([histogram.min]), np.array([histogram.max])
    signed = histogram.min < 0
    used = np.flatnonzero(histogram.counts)
    chosen = _choose_range(
        lower,
        upper,
        histogram.centers[used][np.newaxis],
        histogram.counts[used],
        method=config.activation_quantization_method,
        num_bits=config.activation_n_bits,
        signed=signed,
        calibration_method=config.activation_calibration_method,
        min_threshold=config.min_threshold,
    )
    params = {key: float(value[0]) for key, value in chosen.items()}
    if config.activation_quantization_method is not QuantizationMethod.UNIFORM:
        params[SIGNED] = bool(signed)
    return params


def weight_params(kernel: np.ndarray, channel_axis: int, config: QATConfig) -> dict:
    """Returns the quantization params of a kernel.

    Args:
        kernel: float32 array, finite.
        channel_axis: The axis with a range per channel, if the config asks for that.
        config: The model's configuration.

    Returns:
        float32 arrays of the kernel's rank, of size one on every axis but the channels'; floats per tensor.
    """
    per_channel = config.weight_per_channel
    channels = kernel.shape[channel_axis] if per_channel else 1
    values = np.moveaxis(kernel, channel_axis, 0).reshape(channels, -1)
    chosen = _choose_range(
        values.min(axis=1),
        values.max(axis=1),
        values,
        None,
        method=config.weight_quantization_method,
        num_bits=config.weight_n_bits,
        signed=True,
        calibration_method=config.weight_calibration_method,
        min_threshold=config.min_threshold,
    )
    if not per_channel:
        return {key: float(value[0]) for key, value in chosen.items()}
    shape = [1] * kernel.ndim
    shape[channel_axis] = channels
    return {key: value.astype(np.float32).reshape(shape) for key, value in chosen.items()}


def _choose_range(
    lower, upper, values, counts, *, method, num_bits, signed, calibration_method, min_threshold
):  # fmt: skip
    """Chooses the range of every channel.

    Args:
        lower: [channels], the smallest value.
        upper: [channels], the largest value.
        values: [channels, n], the values to measure the error on.
        counts: [n], how often each value counts; None for once.
        method: The grid's kind.
        num_bits: Number of bits.
        signed: Whether a symmetric grid has negative numbers.
        calibration_method: MIN_MAX, or MSE: the range is then the min-max range times the factor of least error.
        min_threshold: Floor of thresholds, and of the width of uniform ranges.

    Returns:
        {THRESHOLD: [channels]}, or {RANGE_MIN: [channels], RANGE_MAX: [channels]} for the uniform method.
    """
    if method is QuantizationMethod.UNIFORM:
        lower, upper = np.minimum(lower, 0.0), np.maximum(upper, 0.0)
        upper = np.where(upper - lower < min_threshold, lower + min_threshold, upper)
    else:
        upper = np.maximum(np.maximum(-lower, upper), min_threshold)
        if method is QuantizationMethod.POWER_OF_TWO:
            upper = power_of_two_threshold(upper, min_threshold).astype(np.float64)

    def error(factors):
        if method is QuantizationMethod.UNIFORM:
            step = (upper - lower) * factors / (2**num_bits - 1)
            lowest = np.round(lower * factors / step)
            highest = lowest + 2**num_bits - 1
        else:
            step = upper * factors / 2.0 ** (num_bits - signed)
            lowest = np.full_like(step, -(2 ** (num_bits - 1)) if signed else 0)
            highest = lowest + 2**num_bits - 1
        return _squared_error(values, counts, step, lowest, highest)

    factors = np.ones(len(upper))
    if calibration_method is CalibrationMethod.MSE:
        factors = _least_error_factors(error, len(upper), method is QuantizationMethod.POWER_OF_TWO)
    if method is not QuantizationMethod.UNIFORM:
        return {THRESHOLD: np.maximum(upper * factors, min_threshold)}
    shrunk_lower, shrunk_upper = lower * factors, upper * factors
    shrunk_upper = np.where(shrunk_upper - shrunk_lower < min_threshold, shrunk_lower + min_threshold, shrunk_upper)
    return {RANGE_MIN: shrunk_lower, RANGE_MAX: shrunk_upper}


def _least_error_factors(error, channels, power_of_two):
    """The factor of least error for every channel: of a coarse grid, then of a fine one around it."""
    best = np.ones(channels)
    least = error(best)
    coarse = _POWER_OF_TWO_FACTORS if power_of_two else _COARSE_FACTORS
    for stage in (coarse,) if power_of_two else (coarse, _FINE_FACTORS):
        center = best if stage is _FINE_FACTORS else 0.0
        for offset in stage:
            factors = np.minimum(center + np.full(channels, offset), 1.0)
            found = error(factors)
            best, least = np.where(found < least, factors, best), np.minimum(found, least)
    return best


def _squared_error(values, counts, step, lowest, highest):
    step, lowest, highest = (value.astype(values.dtype)[:, np.newaxis] for value in (step, lowest, highest))
    difference = values - np.clip(np.round(values / step), lowest, highest) * step
    np.square(difference, out=difference)
    return difference.sum(axis=1) if counts is None else difference @ counts


def _is_array(value):
    return isinstance(value, np.ndarray) or tf.is_tensor(value)


def _to_numpy(value):
    return value.numpy() if tf.is_tensor(value) else np.asarray(value)


def _arrays(batch, model):
    """The arrays of a batch, in the order of the model's inputs."""
    if isinstance(batch, tuple):
        batch = tf.keras.utils.unpack_x_y_sample_weight(batch)[0]
    if isinstance(batch, Mapping):
        missing = [name for name in model.input_names if name not in batch]
        if missing:
            raise ValueError(
                f"quantize_model: representative_data must have the model's inputs {model.input_names}, got "
                f"{sorted(batch)}"
            )
        batch = [batch[name] for name in model.input_names]
    return [_to_numpy(array) for array in (batch if isinstance(batch, (list, tuple)) else [batch])]


def _split(arrays, model):
    _check_batch(arrays, model)
    for start in range(0, len(arrays[0]), _BATCH_SIZE):
        yield [array[start : start + _BATCH_SIZE] for array in arrays]


def _check_batch(arrays, model):
    wanted = [tuple(tensor.shape) for tensor in model.inputs]
    given = [array.shape for array in arrays]
    fits = len(given) == len(wanted) and all(
        tf.TensorShape(shape).is_compatible_with(want) for shape, want in zip(given, wanted, strict=True)
    )
    if not fits or len({shape[0] for shape in given}) > 1:
        raise ValueError(
            f"quantize_model: a batch of representative_data must have one array per model input, of shapes {wanted}, "
            f"got {given}"
        )
