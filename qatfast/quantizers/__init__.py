"""Trainable quantizers for Keras, and the interface to write one."""

from qatfast.quantizers.base import BaseKerasQATTrainableQuantizer, VariableGroup, get_quantizer_class
from qatfast.quantizers.lsq import LSQActivationQuantizer, LSQWeightsQuantizer
from qatfast.quantizers.ste import STEActivationQuantizer, STEWeightsQuantizer

__all__ = [
    "BaseKerasQATTrainableQuantizer",
    "LSQActivationQuantizer",
    "LSQWeightsQuantizer",
    "STEActivationQuantizer",
    "STEWeightsQuantizer",
    "VariableGroup",
    "get_quantizer_class",
]
