"""The README's first example runs as it stands."""

import re
from pathlib import Path

import numpy as np
import tensorflow as tf
from models import IS_KERAS_3, conv_net, images, labels

README = Path(__file__).parent.parent / "README.md"


def test_the_first_example_trains_and_exports(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    conv_net().save("float.keras")
    code = re.search(r"```python\n(.*?)```", README.read_text(), re.DOTALL).group(1)
    if not IS_KERAS_3:  # the same functions take models of Keras 2
        code = code.replace("import keras\n", "from tensorflow import keras\n")
        assert "from tensorflow import keras" in code
    names = {"images": images(), "labels": labels()}
    exec(code, names)  # noqa: S102
    exported = names["exported"](names["images"]).numpy()
    np.testing.assert_array_equal(exported, names["model"](names["images"], training=False))
    assert isinstance(names["model"], tf.keras.Model) and Path("exported.keras").exists()


def test_no_table_is_missing():
    assert "@@" not in README.read_text()
