"""Keras 2 as the flow uses it: TensorFlow 2.15's `tf.keras`, or the package tf-keras under a newer TensorFlow."""

import os

import tensorflow as tf
from mct_quantizers import KerasActivationQuantizationHolder, KerasQuantizationWrapper, keras_load_quantized_model

from qatfast.flow.adapter import Call, KerasAdapter
from qatfast.flow.float32 import float32_config
from qatfast.flow.keras2_layers import (
    KerasTrainableQuantizationWrapper,
    copy_weights,
    inferable_holder,
    inferable_wrapper,
    round_as_trained,
)
from qatfast.flow.keras2_symbols import KERAS_PACKAGE, is_operation, is_operation_name, keras_module, symbol_of

__all__ = ["KERAS_2"]

_TENSORS = (tf.Tensor, tf.RaggedTensor, tf.SparseTensor, tf.IndexedSlices)
_LAMBDA_LAYERS = ("TFOpLambda", "SlicingOpLambda")


class _Keras2(KerasAdapter):
    name = "Keras 2"
    api = tf.keras
    package = KERAS_PACKAGE
    wrapper = KerasTrainableQuantizationWrapper
    any_wrapper = KerasQuantizationWrapper
    holder = KerasActivationQuantizationHolder
    depthwise_kernel = "depthwise_kernel"
    locks_models = False
    saves_folders = True

    def is_graph_model(self, model):
        return bool(getattr(model, "_is_graph_network", False))

    def calls(self, model):
        by_depth = model._nodes_by_depth
        if min(by_depth) < 0:
            raise ValueError(
                f"model {model.name!r} must have no losses or metrics of add_loss() and add_metric() on its graph: "
                "they are not carried over"
            )
        for depth in sorted(by_depth, reverse=True):
            for node in by_depth[depth]:
                if not node.is_input:
                    yield Call(node.layer, (node.call_args, node.call_kwargs), node.outputs)

    def producer(self, tensor):
        return tensor.node.layer

    def operations(self, model):
        return model.layers

    def function_name(self, operation):
        return operation.get_config()["function"] if type(operation).__name__ in _LAMBDA_LAYERS else None

    def described_function(self, name):
        return f"tf.{name}"

    def input_names(self, model):
        return model.input_names

    def clone(self, operation, name, config=None):
        config = operation.get_config() if config is None else config
        return type(operation).from_config({**config, "name": name})

    def copy_weights(self, source, target):
        copy_weights(source, target)

    def global_policy(self):
        return tf.keras.mixed_precision.global_policy()

    def set_global_policy(self, policy):
        tf.keras.mixed_precision.set_global_policy(policy)

    def quantized_weights(self, operation):
        if not isinstance(operation, KerasQuantizationWrapper):
            return []
        return [(variable, quantizer) for _, variable, quantizer in operation.get_weights_vars()]

    def finalized(self, operation, name):
        if isinstance(operation, KerasQuantizationWrapper):
            return inferable_wrapper(operation, name)
        if isinstance(operation, KerasActivationQuantizationHolder):
            return inferable_holder(operation, name)
        return self.clone(operation, name, float32_config(operation))

    def finish(self, operation, finalized):
        round_as_trained(operation, finalized)

    def load(self, path, objects, compile, safe_mode):
        # The scope reaches Keras in all formats. Its own argument is for .keras files only, and yields to the scope.
        with keras_module("saving.serialization_lib").SafeModeScope(safe_mode):
            model = keras_load_quantized_model(path, custom_objects=objects, compile=compile)
            if compile and model.optimizer is not None and tf.io.gfile.isdir(path):
                _restore_optimizer(model, path)
        return model

    def saved_metadata(self):
        """An empty message of what Keras 2 writes beside a SavedModel."""
        return keras_module("saving.legacy.saved_model.load").saved_metadata_pb2.SavedMetadata()

    def scales_loss(self, optimizer):
        return isinstance(optimizer, tf.keras.mixed_precision.LossScaleOptimizer)

    def registered(self, name, objects):
        return tf.keras.utils.get_registered_object(name, objects)

    def registered_name(self, cls):
        return tf.keras.utils.get_registered_name(cls)

    def registered_objects(self):
        return tf.keras.utils.get_custom_objects()

    def public_symbol(self, module, name):
        if module.split(".")[0] not in ("keras", "tf_keras"):
            return None
        public = f"{module}.{name}"
        return symbol_of(f"compat.v1.{public}" if "__internal__.legacy" in public else public)

    def builtin_function(self, name):
        modules = keras_module("saving.serialization_lib").BUILTIN_MODULES
        return next(filter(None, (symbol_of(f"keras.{module}.{name}") for module in modules)), None)

    def present_name(self, module):
        # Keras takes its package's earlier name for the present one.
        return f"tf_{module}" if module.startswith("keras") and self.package == "tf_keras" else module

    def is_operation(self, function):
        return is_operation(function)

    def stored_functions(self, config):
        function, symbol = config.get("function"), config.get("cls_symbol")
        if isinstance(function, str) and not is_operation_name(function):
            yield f"tf.{function}"
        if isinstance(symbol, str):
            cls = symbol_of(symbol)
            if cls is not None and not (isinstance(cls, type) and issubclass(cls, _TENSORS)):
                yield f"tf.{symbol}"
        if "node_def" in config:  # Keras itself has not written one since TensorFlow 2.4
            yield "an operation of TensorFlow's graphs"


KERAS_2 = _Keras2()


def _restore_optimizer(model, path):
    """Restores the optimizer's state from a SavedModel: Keras creates the optimizer's variables too late to do so."""
    if hasattr(model.optimizer, "build"):
        model.optimizer.build(model.trainable_variables)
    model.load_weights(os.path.join(path, "variables", "variables")).expect_partial()
