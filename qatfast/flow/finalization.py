"""From a model that was trained quantized to the one to deploy."""

from qatfast.flow.graph import check_graph_model, rebuild
from qatfast.flow.select import adapter_of
from qatfast.quantizers.base import is_trainable_quantizer

__all__ = ["finalize_model"]


def finalize_model(qat_model):
    """Returns the model to deploy: it computes the same outputs, and nothing of qatfast is left in it.

    Of a Keras 3 model it has Keras' own layers and operations alone, and loads by `keras.models.load_model` wherever
    Keras 3 is. Kernels are stored as they were quantized. Activations go through Keras' fake-quant operation; before
    it, what LSQ trained is divided by its step, rounded and multiplied again, as training rounds it. Where that
    operation would move the last bits of such numbers, clipping takes its place. In float32 the outputs are training's
    to the last bit.

    Of a Keras 2 model it has mct-quantizers' layers, and loads by `mct_quantizers.keras_load_quantized_model`. STE
    quantizers export what they trained, bit for bit. LSQ quantizers export the grid that they trained on, but
    mct-quantizers rounds by another formula: an activation next to the middle of two numbers of the grid may go to the
    other one. A kernel's element in that place is exported as the number that training makes of it, so that kernels
    are quantized as in training.

    The exported model computes in float32, whatever policies the layers trained under. Its quantized kernels are
    training's but for the rounding to a half type, and so are the grids of its activations; what layers compute differs
    by the precision of that type. Outputs of half types become float32.

    Args:
        qat_model: A model from `quantize_model` or `load_model`, or a Functional or Sequential model of your own with
            trainable quantizers. It stays as it is, ready to go on training.

    Returns:
        A Functional model of the same inputs, outputs and names, not compiled and not trainable.

    Raises:
        TypeError: `qat_model` is no Keras model.
        ValueError: It is subclassed or not built, or has no trainable quantizer; or a quantizer cannot be exported
            such that it computes what it trained.
    """
    keras = adapter_of("finalize_model", qat_model, "qat_model")
    check_graph_model("finalize_model", keras, qat_model)
    found = False
    wrappers = []

    def convert(operation, name):
        nonlocal found
        quantizers = keras.quantizers(operation)
        found |= any(map(is_trainable_quantizer, quantizers))
        converted = keras.finalized(operation, name)
        if quantizers and not isinstance(operation, keras.holder):
            wrappers.append((operation, converted))
        return converted

    finalized = rebuild(keras, qat_model, convert, dtype_policy="float32")
    if not found:
        raise ValueError(
            f"finalize_model: qat_model must have trainable quantizers, got {qat_model.name!r} without any"
        )
    for trained, exported in wrappers:  # after `rebuild` has copied the weights
        keras.finish(trained, exported)
    finalized.trainable = False
    return finalized
