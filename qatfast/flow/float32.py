"""Configs of layers with float32 in the place of other floating-point policies, as deployed models have it."""

__all__ = ["float32_config"]


def float32_config(layer) -> dict:
    """Returns the config of a layer, and of the layers in it, with float32 for every other floating-point policy."""
    return _with_float32_policies(layer.get_config())


def _with_float32_policies(value):
    if isinstance(value, dict):
        return {
            key: "float32" if key == "dtype" and _is_other_policy(item) else _with_float32_policies(item)
            for key, item in value.items()
        }
    if isinstance(value, (list, tuple)):  # Keras turns the lists of a layer's attributes into a subclass
        items = map(_with_float32_policies, value)
        return list(items) if isinstance(value, list) else tuple(items)
    return value


def _is_other_policy(dtype):
    name = dtype.get("config", {}).get("name") if isinstance(dtype, dict) else dtype  # a mixed policy is a dict
    return name in ("mixed_float16", "mixed_bfloat16", "float16", "bfloat16", "float64")
