"""Keras 3 as the flow uses it."""

import sys
import types

import h5py
import keras
import numpy as np
from keras._tf_keras.keras import layers as tf_keras_layers
from keras.src.legacy.saving.legacy_h5_format import load_optimizer_weights_from_hdf5_group
from keras.src.quantizers.quantizers import FakeQuantWithMinMaxVars  # its public function drops the arguments
from keras.src.saving.serialization_lib import BUILTIN_MODULES, SafeModeScope
from mct_quantizers.keras.quantizers import ActivationUniformInferableQuantizer

from qatfast.flow.adapter import Call, KerasAdapter
from qatfast.flow.float32 import float32_config
from qatfast.flow.graph import all_operations
from qatfast.flow.keras3_layers import (
    KerasActivationQuantizationHolder,
    KerasTrainableQuantizationWrapper,
    check_plain_weights,
    find_variable,
)
from qatfast.quantizers import LSQActivationQuantizer
from qatfast.quantizers.base import call_quantizer, is_trainable_quantizer

__all__ = ["KERAS_3"]

# Where Keras keeps the functions that models are made of: any other may do anything, as `keras.utils.get_file` does.
_MODULES_OF_FUNCTIONS = tuple(f"keras.src.{module}." for module in (*BUILTIN_MODULES, "ops"))


class _Keras3(KerasAdapter):
    name = "Keras 3"
    api = keras
    package = "keras"
    wrapper = any_wrapper = KerasTrainableQuantizationWrapper
    holder = KerasActivationQuantizationHolder
    depthwise_kernel = "kernel"
    locks_models = True
    saves_folders = False

    @property
    def layer_modules(self):
        return (keras.layers, tf_keras_layers)  # some of what tf.keras has is of classes of its own

    def is_graph_model(self, model):
        is_built_sequential = isinstance(model, keras.Sequential) and model.built and model._functional is not None
        return isinstance(model, keras.Function) or is_built_sequential

    def functional(self, model):
        return model if isinstance(model, keras.Function) else model._functional

    def calls(self, model):
        by_depth = self.functional(model)._nodes_by_depth
        for depth in sorted(by_depth, reverse=True):
            for node in by_depth[depth]:
                if not node.is_input:
                    yield Call(node.operation, (node.arguments.args, node.arguments.kwargs), node.outputs)

    def producer(self, tensor):
        return tensor._keras_history.operation

    def operations(self, model):
        return self.functional(model).operations

    def function_name(self, operation):
        return None if isinstance(operation, keras.layers.Layer) else type(operation).__name__

    def described_function(self, name):
        return f"the operation {name}"

    def input_names(self, model):
        return [self.producer(tensor).name for tensor in model.inputs]

    def clone(self, operation, name, config=None):
        config = operation.get_config() if config is None else config
        if not isinstance(operation, keras.layers.Layer):  # whose constructors take no name
            new = type(operation).from_config({key: value for key, value in config.items() if key != "name"})
            new.name = name
            return new
        # A layer's functions come through its config, but are no file's: lambdas, and such as Keras would not find.
        with SafeModeScope(False), keras.saving.custom_object_scope(_functions(operation)):
            new = type(operation).from_config({**config, "name": name})
        if operation.built and not new.built:
            new.build_from_config(operation.get_build_config())
        return new

    def copy_weights(self, source, target):
        if not isinstance(source, keras.layers.Layer) or isinstance(source, self.holder):
            return  # all variables of a holder are its quantizer's
        source, target = self._unwrapped(source), self._unwrapped(target)
        for value, variable in zip(source.weights, target.weights, strict=True):
            variable.assign(value)
        for layer in target._flatten_layers():
            if hasattr(layer, "finalize_state"):  # Normalization and its like compute with tensors made of weights
                layer.finalize_state()

    def global_policy(self):
        return keras.config.dtype_policy()

    def set_global_policy(self, policy):
        keras.config.set_dtype_policy(policy)

    def is_quantized(self, operation):
        return super().is_quantized(operation) or isinstance(operation, FakeQuantWithMinMaxVars)

    def quantized_weights(self, operation):
        if not isinstance(operation, self.wrapper):
            return []
        items = operation.weights_quantizers.items()
        return [(find_variable(operation.layer, path), quantizer) for path, quantizer in items]

    def check_is_float(self, operation):
        if isinstance(operation, keras.layers.Layer):
            check_plain_weights(operation)

    def jit(self, config):
        return {"supports_jit": config.supports_jit}

    def finalized(self, operation, name):
        if isinstance(operation, self.holder):
            return _fake_quant(operation, name)
        layer = self._unwrapped(operation)
        config = float32_config(layer) if isinstance(layer, keras.layers.Layer) else layer.get_config()
        return self.clone(layer, name, config)

    def finish(self, operation, finalized):
        for path, quantizer in operation.weights_quantizers.items():
            weight = find_variable(operation.layer, path)
            value = call_quantizer(quantizer, keras.ops.cast(weight, operation.compute_dtype), training=False)
            value = keras.ops.cast(value, "float32")
            if operation.compute_dtype not in ("float32", "float64") and is_trainable_quantizer(quantizer):
                value = quantizer.convert2inferable()(value)  # on the grid, which a half type rounds
            find_variable(finalized, path).assign(value)

    def load(self, path, objects, compile, safe_mode):
        with SafeModeScope(safe_mode):  # which reaches layers in layers of .h5 files, too
            model = keras.saving.load_model(path, custom_objects=objects, compile=compile, safe_mode=safe_mode)
        if compile and path.endswith((".h5", ".hdf5")) and getattr(model, "optimizer", None) is not None:
            _restore_optimizer(model, path, objects)
        return model

    def check_format(self, model, suffix):
        operations = all_operations(self, model) if self.is_graph_model(model) else ()
        names = [operation.name for operation in operations if not isinstance(operation, keras.layers.Layer)]
        if names and suffix != ".keras":
            raise ValueError(
                f"save_model: path must end in .keras for a model with operations that are no layers, which Keras 3 "
                f"does not load from {suffix} files, got {model.name!r} with {', '.join(names[:5])}"
            )

    def save(self, model, path, options):
        if path.endswith(".keras") and "include_optimizer" in options:  # which Keras would ignore
            raise ValueError(
                f"save_model: include_optimizer must be left out for .keras files, which Keras 3 saves with the "
                f"optimizer, got {options['include_optimizer']!r}"
            )
        compilation = getattr(model, "_compile_config", None)
        kept = dict(compilation.config) if compilation else {}
        super().save(model, path, options)
        if compilation:  # Keras forgets the optimizer there as it writes an .h5 file
            compilation.config.update(kept)

    def scales_loss(self, optimizer):
        return isinstance(optimizer, keras.optimizers.LossScaleOptimizer)

    def custom_objects(self):
        # Not the quantizers: these make them by themselves, and a name may be one of Keras' operations, as Clip.
        classes = (self.wrapper, self.holder)
        return {name: cls for cls in classes for name in (cls.__name__, self.registered_name(cls))}

    def registered(self, name, objects):
        return keras.saving.get_registered_object(name, objects)

    def registered_name(self, cls):
        return keras.saving.get_registered_name(cls)

    def registered_objects(self):
        return keras.saving.get_custom_objects()

    def public_symbol(self, module, name):
        found = sys.modules.get(module) if module.split(".")[0] == "keras" else None
        return getattr(found, name, None)

    def builtin_function(self, name):
        return next(filter(None, (getattr(getattr(keras, module), name, None) for module in BUILTIN_MODULES)), None)

    def is_operation(self, function):
        return getattr(function, "__module__", "").startswith(_MODULES_OF_FUNCTIONS)

    def _unwrapped(self, layer):
        return layer.layer if isinstance(layer, self.wrapper) else layer


KERAS_3 = _Keras3()


def _functions(layer):
    """The functions that a layer, and those in it, have for attributes, by name."""
    values = (value for inner in layer._flatten_layers() for value in vars(inner).values())
    return {value.__name__: value for value in values if isinstance(value, types.FunctionType)}


def _restore_optimizer(model, path, objects):
    """Restores the optimizer's state from an .h5 file: Keras makes an optimizer there that knows no variables."""
    with keras.saving.custom_object_scope(objects):
        model.compile_from_config(model.get_compile_config())
    with h5py.File(path, "r") as file:
        is_stored = "optimizer_weights" in file
        stored = [value[()] for value in load_optimizer_weights_from_hdf5_group(file)] if is_stored else []
    if len(stored) == len(model.optimizer.variables):  # fewer where it had not trained yet
        for variable, value in zip(model.optimizer.variables, stored, strict=True):
            variable.assign(value)


def _fake_quant(holder, name):
    """Keras' own operations that compute as a holder's quantizer does, as a function of a tensor.

    The last is the fake-quant operation, by which converters find ranges. LSQ's rounding, which is another one, comes
    before it; where the operation would move numbers of the grid by their last bits, clipping takes its place.
    """
    quantizer = holder.activation_holder_quantizer
    inferable = quantizer.convert2inferable() if is_trainable_quantizer(quantizer) else quantizer
    if not isinstance(inferable, ActivationUniformInferableQuantizer):
        raise ValueError(
            f"finalize_model: the quantizer of {holder.name!r} must be exported as one of mct-quantizers' with evenly "
            f"spaced numbers, got {type(inferable).__name__}"
        )
    operation = FakeQuantWithMinMaxVars(num_bits=inferable.num_bits)
    operation.name = name
    lower, upper = (float(value[0]) for value in (inferable.min_range, inferable.max_range))

    def fake_quant(x):
        return operation.symbolic_call(x, lower, upper)

    if not isinstance(quantizer, LSQActivationQuantizer):
        return fake_quant
    grid = quantizer.trained_grid()
    step, smallest, largest = float(np.float32(grid.step)), float(grid.smallest), float(grid.largest)
    integers = np.arange(smallest - 1, largest + 2, dtype=np.float32)
    numbers = np.float32(step) * integers.clip(smallest, largest)
    keeps_the_grid = np.array_equal(inferable(np.float32(step) * integers), numbers)

    def quantize(x):
        rounded = keras.ops.round(_divide(x, step))
        if keeps_the_grid:
            return fake_quant(keras.ops.multiply(rounded, step))
        return keras.ops.multiply(keras.ops.clip(rounded, smallest, largest), step)

    return quantize


def _divide(x, step):
    """The float32 quotient x / step to the last bit, in a graph too.

    There TensorFlow's optimizer multiplies by the inverse of a constant. In float64 the product is off by less than
    2^-51 of itself, and the quotient of two numbers of 24 bits is at least 2^-49 of itself away from the middle of two
    float32 numbers. So both round to the same one.
    """
    return keras.ops.cast(keras.ops.divide(keras.ops.cast(x, "float64"), step), "float32")
