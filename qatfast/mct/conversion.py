"""MCT's models with qatfast's quantizers in the place of the stock ones, and back."""

import inspect
import warnings
from collections.abc import Callable, Iterator
from typing import NamedTuple

import tensorflow as tf
from mct_quantizers import KerasActivationQuantizationHolder, KerasQuantizationWrapper, QuantizationTarget

from qatfast.mct.configs import without_candidates
from qatfast.mct.quantizers import QUANTIZERS
from qatfast.mct.trained_kernels import warn_unless_a_kernel_trains

__all__ = ["accelerate", "restore"]

_STOCK = {ours: stock for stock, ours in QUANTIZERS.items()}


def accelerate(
    model: tf.keras.Model,
    weight_quantizer_params_override: dict | None = None,
    activation_quantizer_params_override: dict | None = None,
) -> tf.keras.Model:
    """Puts qatfast's quantizers in the place of MCT's in a QAT model that exists already.

    The model itself is changed: its layers, variables, optimizer with its state, losses, metrics and callbacks stay as
    they are, and what Keras has traced of it is traced anew. A `tf.function` of your own that was traced before goes on
    with the stock quantizers.

    Args:
        model: A model that was built, or loaded, with MCT's trainable quantizers (STE or LSQ), perhaps half trained.
            Other quantizers in it stay as they are.
        weight_quantizer_params_override: Arguments of the weights quantizers, as in MCT's `QATConfig`.
        activation_quantizer_params_override: Arguments of the activation quantizers.

    Returns:
        `model`.

    Raises:
        TypeError: `model` is no Keras model.
        ValueError: It has no quantizer of MCT's or qatfast's; or an argument does not fit.
    """
    overrides = {
        QuantizationTarget.Weights: weight_quantizer_params_override or {},
        QuantizationTarget.Activation: activation_quantizer_params_override or {},
    }

    def make(stock):
        ours = QUANTIZERS[type(stock)]
        arguments = overrides[ours.quantization_target]
        unknown = arguments.keys() - inspect.signature(ours).parameters
        if unknown:
            known = list(inspect.signature(ours).parameters)[1:]
            raise ValueError(f"accelerate: arguments of {ours.__name__} must be among {known}, got {sorted(unknown)}")
        return ours(stock.quantization_config, **arguments)

    _replace_quantizers("accelerate", model, QUANTIZERS, _STOCK, make)
    warn_unless_a_kernel_trains(model.submodules)
    return model


def restore(model: tf.keras.Model) -> tf.keras.Model:
    """Puts MCT's stock quantizers back, so that the model is saved as one that MCT loads without qatfast.

    As `accelerate`, the other way round. Where a quantizer computes otherwise than the stock one, for an argument that
    was given to it, a warning says so. The candidates of a mixed-precision search, which nothing reads any more and
    with which MCT cannot save a model, are dropped.

    Args:
        model: A model with quantizers of `qatfast.mct`.

    Returns:
        `model`.

    Raises:
        TypeError: `model` is no Keras model.
        ValueError: It has no quantizer of MCT's or qatfast's; or a learned range is frozen, which MCT does not know.
    """
    mended = set()

    def make(ours):
        stock, arguments = _STOCK[type(ours)], {}
        for name, parameter in list(inspect.signature(type(ours)).parameters.items())[1:]:
            value = getattr(ours, name)
            if name in inspect.signature(stock).parameters:
                arguments[name] = value
            elif name == "freeze_quant_params" and value and hasattr(ours, "gradient_scale"):
                raise ValueError(
                    f"restore: freeze_quant_params of {type(ours).__name__} must be False, as {stock.__name__} always "
                    "trains its range and would not load the model's variables, got True"
                )
            elif name != "freeze_quant_params" and value != parameter.default:
                mended.add(f"{name}={value!r}")
        return stock(without_candidates(ours.quantization_config), **arguments)

    _replace_quantizers("restore", model, _STOCK, QUANTIZERS, make)
    if mended:
        warnings.warn(f"restore: MCT's quantizers train as without {', '.join(sorted(mended))}", stacklevel=2)
    return model


def _replace_quantizers(function: str, model, old: dict, new: dict, make: Callable) -> None:
    """Replaces each quantizer of a class among `old` by what `make` returns; all of them, or none if that raises."""
    if not isinstance(model, tf.keras.Model):
        raise TypeError(f"{function}: model must be a tf.keras.Model, got {type(model).__name__}")
    slots = [slot for layer in model.submodules for slot in _slots(layer)]
    replaced = {id(slot.quantizer): make(slot.quantizer) for slot in slots if type(slot.quantizer) in old}
    if not replaced and not any(type(slot.quantizer) in new for slot in slots):
        kinds = sorted({type(slot.quantizer).__name__ for slot in slots})
        raise ValueError(
            f"{function}: model must have MCT's trainable quantizers, of STE or LSQ, got {model.name!r} with "
            f"{kinds or 'no quantizer'}"
        )
    for slot in slots:
        if id(slot.quantizer) in replaced and slot.layer.built:
            _take_over(replaced[id(slot.quantizer)], slot)
    for layer in {id(slot.layer): slot.layer for slot in slots}.values():
        _put(layer, replaced)
    model.train_function = model.test_function = model.predict_function = None


class _Slot(NamedTuple):
    """Where a quantizer is: in a holder of an activation, or in a wrapper, for a weight of this shape."""

    quantizer: object
    layer: tf.keras.layers.Layer
    tensor_shape: tf.TensorShape | None = None


def _slots(layer) -> Iterator[_Slot]:
    if isinstance(layer, KerasActivationQuantizationHolder):
        yield _Slot(layer.activation_holder_quantizer, layer)
    elif isinstance(layer, KerasQuantizationWrapper):
        shapes = {name: weight.shape for name, weight, _ in layer.get_weights_vars()} if layer.built else {}
        for name, quantizer in layer.weights_quantizers.items():
            yield _Slot(quantizer, layer, shapes.get(name))


def _take_over(quantizer, slot):
    """Has a new quantizer go on with the variables of the one in the slot."""
    if type(quantizer) in _STOCK:
        quantizer.take_over(slot.quantizer, slot.tensor_shape, slot.layer)
    else:
        quantizer.quantizer_parameters = dict(slot.quantizer.quantizer_parameters)


def _put(layer, replaced):
    """Replaces the quantizers of a holder or a wrapper, given by the identity of the old ones."""
    if isinstance(layer, KerasActivationQuantizationHolder):
        quantizer = layer.activation_holder_quantizer
        layer.activation_holder_quantizer = replaced.get(id(quantizer), quantizer)
        return
    layer.weights_quantizers = {name: replaced.get(id(q), q) for name, q in layer.weights_quantizers.items()}
    if layer.built:
        layer._weights_vars = [(name, weight, replaced.get(id(q), q)) for name, weight, q in layer.get_weights_vars()]
