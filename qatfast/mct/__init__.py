"""Sony's Model Compression Toolkit (MCT) on qatfast's ops, with nothing patched: stock MCT works on beside it.

```python
import qatfast.mct

config = mct.qat.QATConfig(weight_training_method=qatfast.mct.TrainingMethod.STE,
                           activation_training_method=qatfast.mct.TrainingMethod.STE)
model, info, _ = mct.qat.keras_quantization_aware_training_init_experimental(float_model, data, qat_config=config)
```

Importing this module is what makes MCT find the quantizers. It needs MCT 2.6 and TensorFlow 2.15, where MCT's Keras
side ends: `pip install 'qatfast[mct]'`. docs/mct.md has what differs from the stock quantizers.
"""

import importlib.util

import tensorflow as tf

if importlib.util.find_spec("model_compression_toolkit") is None:
    raise ImportError("qatfast.mct: Sony's model-compression-toolkit must be installed: pip install 'qatfast[mct]'")
if tuple(map(int, tf.__version__.split(".")[:2])) >= (2, 16):
    raise ImportError(
        f"qatfast.mct: TensorFlow must be 2.15, where MCT's Keras side ends, got {tf.__version__}; "
        "qatfast.quantize_model trains quantized models without MCT"
    )

from qatfast.config import GradientScale, TrainingMethod  # noqa: E402
from qatfast.mct.conversion import accelerate, restore  # noqa: E402

__all__ = ["GradientScale", "TrainingMethod", "accelerate", "restore"]
