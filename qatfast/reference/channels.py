"""Tensors by channel: parameters laid along an axis, and sums over all others."""

import tensorflow as tf

__all__ = ["broadcast_to_channels", "sum_per_channel"]


def broadcast_to_channels(value, x, axis):
    """Reshapes a [channels] tensor to have x's rank, with its values along `axis`."""
    if axis is None:
        return value
    if x.shape.rank is not None:  # static, as XLA asks for
        return tf.reshape(value, [-1 if i == axis % x.shape.rank else 1 for i in range(x.shape.rank)])
    rank = tf.rank(x)
    return tf.reshape(value, tf.tensor_scatter_nd_update(tf.ones([rank], tf.int32), [[axis % rank]], [-1]))


def sum_per_channel(values, axis):
    """Sums over all axes but `axis`, in float64."""
    values = tf.cast(values, tf.float64)
    if axis is None:
        return tf.reduce_sum(values)
    if values.shape.rank is not None:
        return tf.reduce_sum(values, [i for i in range(values.shape.rank) if i != axis % values.shape.rank])
    rank = tf.rank(values)
    return tf.reduce_sum(values, tf.boolean_mask(tf.range(rank), tf.not_equal(tf.range(rank), axis % rank)))
