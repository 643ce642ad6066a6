"""Reads the data that a model is calibrated on: any form of it becomes checked NumPy arrays, one per model input."""

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping

import numpy as np
import tensorflow as tf

__all__ = ["representative_batches"]

_BATCH_SIZE = 32
_DATA = "quantize_model: representative_data"
_BATCH = "quantize_model: a batch of representative_data"


def representative_batches(data, model, input_names: list[str]) -> Iterator[list[np.ndarray]]:
    """Yields batches, one array per input of `model`, from any form of representative data.

    Arrays are split into batches of 32. A model of a fixed batch size gets batches of that size, whatever the size of
    what is given: it is split, and where samples are left over, or are too few, the first samples of the same array or
    batch come once more to fill the last one. So every sample counts, and none is made up: ranges of least and largest
    values are those of the same model with an open batch size.

    Args:
        data: One of
            - an array (one input), a list or tuple of arrays (one per input), or a dict of arrays by input name;
            - a function without arguments that returns an iterable of batches (MCT's `representative_data_gen`);
            - an iterable of batches, such as a `tf.data.Dataset` or a generator.
            A batch is an array, a list of arrays or a dict, as above, or a tuple (x, y) or (x, y, sample_weight) as in
            Keras' `fit`, of which x is taken. An array is what NumPy reads as one: also an eager tensor, or a table.
            Its numbers are cast to the input's type, as `fit` does, if nothing of them gets lost but precision.
        model: The model that is to read them, of either Keras.
        input_names: The names of its inputs, in their order.

    Raises:
        TypeError: `data` is none of these, or what should be an array is none, or not of the input's kind of type.
        ValueError: A batch does not fit the model's inputs, or is empty; there is none; a dataset is infinite; numbers
            for an input of integers are not integers of its type; or the model's inputs have different batch sizes.
    """
    inputs = _Inputs(model, input_names)
    if isinstance(data, Callable):
        data = _called(data)
    if inputs.are_whole(data):
        arrays = inputs.read(list(data) if isinstance(data, tuple) else data)  # a batch that is a tuple is (x, y)
        if not len(arrays[0]):
            raise ValueError(f"{_DATA} must hold at least one batch, got none in arrays of shapes {_shapes(arrays)}")
        yield from inputs.split(arrays, inputs.batch_size or _BATCH_SIZE)
        return
    if not isinstance(data, Iterable) or isinstance(data, (str, bytes)):
        raise TypeError(
            f"{_DATA} must be an array, arrays by input, an iterable of batches or a function that returns one, got "
            f"{type(data).__name__}"
        )
    if isinstance(data, tf.data.Dataset) and data.cardinality() == tf.data.INFINITE_CARDINALITY:
        raise ValueError(f"{_DATA} must end, got an infinite dataset: use take(n)")
    count = 0
    for batch in data:
        where = f" in batch {count}"
        arrays = inputs.read(batch, where)
        if not len(arrays[0]):
            raise ValueError(f"{_BATCH} must hold at least one sample, got shapes {_shapes(arrays)}{where}")
        yield from inputs.split(arrays, inputs.batch_size or len(arrays[0]))
        count += 1
    if not count:
        once = ", which can be read once only: pass the function that makes it" if isinstance(data, Iterator) else ""
        raise ValueError(f"{_DATA} must hold at least one batch, got none from a {type(data).__name__}{once}")


def _called(function):
    """What a function of the user's returns."""
    try:
        signature = inspect.signature(function)
    except ValueError:  # that of some functions written in C is not known
        return function()
    try:
        signature.bind()
    except TypeError:
        name = getattr(function, "__name__", type(function).__name__)
        raise TypeError(f"{_DATA} must need no arguments if it is a function, got {name}{signature}") from None
    return function()


class _Inputs:
    """What a model's inputs take: names, types, shapes of samples, and the batch size if it is fixed, else None."""

    def __init__(self, model, names):
        self.names = names
        self.structure = model.input
        several = self.structure.values() if isinstance(self.structure, dict) else self.structure
        self.is_nested = len(names) > 1 and any(isinstance(item, (dict, list, tuple)) for item in several)
        self.keys = sorted(model.input) if isinstance(model.input, dict) else self.names  # as Keras sorts them
        self.dtypes = [tf.as_dtype(tensor.dtype) for tensor in model.inputs]
        self.shapes = [(None, *tensor.shape[1:]) for tensor in model.inputs]
        sizes = [tensor.shape[0] for tensor in model.inputs]
        fixed = set(sizes) - {None}
        if len(fixed) > 1:
            raise ValueError(f"quantize_model: model must have inputs of one batch size, got {self.names} of {sizes}")
        self.batch_size = fixed.pop() if fixed else None

    def are_whole(self, data) -> bool:
        """Whether `data` has all samples of an input in one array, and is not to be iterated over."""
        if isinstance(data, (list, tuple)):
            return len(data) == len(self.names) and all(map(_is_array, data))
        return _is_array(data) or isinstance(data, Mapping)

    def read(self, batch, where="") -> list[np.ndarray]:
        """The arrays of a batch, in the order of the model's inputs; `where` ends messages."""
        if isinstance(batch, tuple):
            if not 1 <= len(batch) <= 3:
                raise ValueError(f"{_BATCH} must be (x, y) or (x, y, weight) if a tuple, got {len(batch)} items{where}")
            batch = batch[0]
        if self.is_nested and _has_structure(batch, self.structure):
            batch = tf.nest.flatten(batch)
        if isinstance(batch, Mapping):
            batch = self._by_name(batch, where)
        arrays = [_to_numpy(value, where) for value in (batch if isinstance(batch, (list, tuple)) else [batch])]
        for array, wanted, name in zip(arrays, self.dtypes, self.names, strict=False):
            _check_type(array, wanted, f"for input {name!r}", where)
        shapes = _shapes(arrays)
        fits = len(shapes) == len(self.shapes) and all(
            tf.TensorShape(shape).is_compatible_with(wanted) for shape, wanted in zip(shapes, self.shapes, strict=True)
        )
        if not fits:
            raise ValueError(
                f"{_BATCH} must have one array per model input, of shapes {self.shapes}, got {shapes}{where}"
            )
        if len({shape[0] for shape in shapes}) > 1:
            raise ValueError(
                f"{_BATCH} must have one array per model input, all of as many samples, got shapes {shapes}{where}"
            )
        return arrays

    def _by_name(self, batch, where):
        for names in (self.names, self.keys):
            if set(batch) == set(names):
                return [batch[name] for name in names]
        raise ValueError(f"{_DATA} must have the model's inputs {self.names}, got {sorted(map(str, batch))}{where}")

    def split(self, arrays, size) -> Iterator[list[np.ndarray]]:
        """Yields batches of at most `size`; if the model's is fixed, the first samples fill the last batch."""
        count = len(arrays[0])
        for start in range(0, count, size):
            end = start + size
            if end > count and self.batch_size:
                yield [array.take(range(start, end), axis=0, mode="wrap") for array in arrays]
            else:
                yield [array[start:end] for array in arrays]


def _has_structure(batch, structure):
    try:
        tf.nest.assert_same_structure(structure, batch, check_types=False)
    except (TypeError, ValueError):
        return False
    return True


def _is_array(value):
    return hasattr(value, "__array__") or tf.is_tensor(value)


def _shapes(arrays):
    return [array.shape for array in arrays]


def _to_numpy(value, where):
    if isinstance(value, (tf.SparseTensor, tf.RaggedTensor, tf.IndexedSlices)) or np.ma.is_masked(value):
        raise TypeError(f"{_BATCH} must be of dense arrays, got {type(value).__name__}{where}")
    try:
        return np.asarray(value)
    except Exception as error:  # of a library's own __array__, or NumPy's about lists
        raise TypeError(
            f"{_BATCH} must be of what NumPy reads as an array, got {type(value).__name__}{where}: {error}"
        ) from error


def _check_type(array, wanted, which, where):
    """Raises an error if a cast to the input's type, which Keras does, would lose more than precision."""
    try:
        given = tf.as_dtype(array.dtype)
    except TypeError:  # dates, records
        given = None
    is_real = given is not None and (given.is_floating or given.is_integer or given.is_bool)
    if wanted == tf.string:
        fits, requirement = given == tf.string, "strings"
    elif wanted.is_complex:
        fits, requirement = is_real or (given is not None and given.is_complex), "numbers"
    else:
        fits, requirement = is_real, "real numbers"
    if not fits:
        raise TypeError(f"{_BATCH} must be of {requirement} {which}, got {array.dtype.name}{where}")
    if (wanted.is_integer or wanted.is_bool) and array.size:
        numbers = array.astype(np.float64) if given.is_floating else array
        least, largest = numbers.min(), numbers.max()
        lowest, highest = (0, 1) if wanted.is_bool else (wanted.min, wanted.max)
        if not (lowest <= least and largest <= highest and np.all(numbers == np.trunc(numbers))):
            raise ValueError(
                f"{_BATCH} must be of {wanted.name} {which}, got {array.dtype.name} from {least} to {largest}{where}"
            )
