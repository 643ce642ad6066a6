"""Chooses quantization ranges: from what a model computes on representative data, and from its kernels."""

import numpy as np
import tensorflow as tf
from mct_quantizers import QuantizationMethod
from tqdm import tqdm

from qatfast.config import RANGE_MAX, RANGE_MIN, SIGNED, THRESHOLD, CalibrationMethod, QATConfig
from qatfast.quantizers.ranges import power_of_two_threshold
from qatfast.representative_data import representative_batches

__all__ = ["Histogram", "activation_params", "observe", "weight_params"]

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


def observe(keras, model, points, representative_data) -> list[Histogram]:
    """Runs the model, in inference mode, on all of the data, under a progress bar.

    Args:
        keras: The model's Keras: a `flow.adapter.KerasAdapter`.
        model: The float model.
        points: `flow.placement.ActivationPoint`s of the model.
        representative_data: What `representative_batches` reads.

    Returns:
        The histogram of every point's tensor.

    Raises:
        TypeError: What `representative_batches` raises.
        ValueError: That, or a tensor is not finite.
    """
    observer = keras.api.Model(model.inputs, [point.tensor for point in points])
    histograms = [Histogram() for _ in points]
    batches = representative_batches(representative_data, model, keras.input_names(model))
    for count, batch in enumerate(tqdm(batches, desc="Calibrating activations", unit="batch")):
        outputs = tf.nest.flatten(observer.predict_on_batch(batch))
        for point, output, histogram in zip(points, outputs, histograms, strict=True):
            values = np.asarray(output, np.float32)  # of half precision in mixed-precision models
            if not (np.isfinite(values.min()) and np.isfinite(values.max())):
                raise ValueError(
                    f"quantize_model: the output of layer {point.operation.name!r} must be finite on "
                    f"representative_data, got NaN or infinity in batch {count}"
                )
            histogram.add(values)
    return histograms


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
