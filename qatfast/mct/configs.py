"""MCT's configs of a quantizer: as JSON data, and as qatfast's own."""

import copy

from model_compression_toolkit.trainable_infrastructure.common.trainable_quantizer_config import (
    TrainableQuantizerCandidateConfig,
)

from qatfast import config as own_configs
from qatfast.quantizers.serialization import to_json

__all__ = ["config_from_json", "config_to_json", "own_config", "without_candidates"]


def without_candidates(config):
    """Returns MCT's config without the candidates of a mixed-precision search, with which MCT cannot save it.

    No quantizer of STE or LSQ reads them.
    """
    plain = copy.copy(config)
    setattr(plain, _candidates_field(plain), None)
    return plain


def _candidates_field(config):
    return next(name for name in vars(config) if name.endswith("_bits_candidates"))


def _arguments(config):
    """MCT's config as the arguments of its constructor."""
    arguments = dict(vars(config))
    field = _candidates_field(config)
    arguments[field.replace("_bits_", "_quantization_")] = arguments.pop(field)
    return arguments


def config_to_json(config, quantizer):
    """Returns MCT's config as JSON data, for the quantizer of that name."""
    arguments = _arguments(config)
    field = next(name for name in arguments if name.endswith("_candidates"))
    if arguments[field] is not None:
        arguments[field] = [vars(candidate) for candidate in arguments[field]]
    return to_json(arguments, f"{quantizer}: quantization_config")


def config_from_json(config_class, arguments):
    """Returns the config that `config_to_json` described."""
    field = next(name for name in arguments if name.endswith("_candidates"))
    if arguments[field] is not None:
        candidates = [TrainableQuantizerCandidateConfig(**candidate) for candidate in arguments[field]]
        arguments = {**arguments, field: candidates}
    return config_class(**arguments)


def own_config(config):
    """Returns qatfast's config of the same values as MCT's."""
    return getattr(own_configs, type(config).__name__)(**_arguments(without_candidates(config)))
