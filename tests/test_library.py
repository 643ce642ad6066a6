"""Loading: what runs on what, and what is said when it cannot."""

import os
import subprocess
import sys

import pytest
import tensorflow as tf

import qatfast
from qatfast import _core, _library


def run_python(code, arguments=(), without="", **environment):
    """Runs code in a new interpreter, away from the source folder, which would be imported instead of the package."""
    environment = {key: value for key, value in {**os.environ, **environment}.items() if key != without}
    folder = os.path.dirname(__file__)
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, check=False)


def test_build_info_tells_what_this_installation_is_made_of():
    info = qatfast.build_info()
    assert info["tensorflow"] == tf.__version__
    assert info["tensorflow_built_for"].split(".")[:2] == tf.__version__.split(".")[:2]
    assert info["backend"] == "native"
    assert info["instruction_sets"][0] == "portable"
    assert os.path.exists(info["library"])


def test_wheel_requires_the_tensorflow_that_it_was_built_for():
    import importlib.metadata

    minor = ".".join(tf.__version__.split(".")[:2])
    required = importlib.metadata.requires("qatfast")
    assert f"tensorflow=={minor}.*" in required
    assert ("keras>=3.10" in required) == (minor != "2.15")
    assert [line for line in required if line.startswith("tf-keras")] == ['tf-keras; extra == "keras2"']


def test_another_tensorflow_is_refused_with_both_versions_and_the_way_out(monkeypatch):
    monkeypatch.setattr(_core, "build_facts", lambda: {"tensorflow": "2.3.1"})
    with pytest.raises(ImportError, match=r"built for TensorFlow 2\.3\.1, but TensorFlow .* is installed") as raised:
        _library.load_ops()
    assert tf.__version__ in str(raised.value)
    assert "pip install --force-reinstall --no-deps --no-build-isolation ." in str(raised.value)


def test_a_missing_op_library_is_an_error_not_a_fallback(monkeypatch):
    monkeypatch.setattr(_library, "_library_path", lambda: None)
    with pytest.raises(ImportError, match="the op library is not built"):
        _library.load_ops()


def test_reference_backend_runs_on_request_only():
    result = run_python(
        "import qatfast; assert qatfast.build_info()['backend'] == 'reference'; assert qatfast.ops._native is None;"
        "print(qatfast.ops.fake_quant([0.3], -1.0, 1.0).numpy())",
        QATFAST_BACKEND="reference",
    )
    assert result.returncode == 0, result.stderr


def test_unknown_backend_is_refused():
    result = run_python("import qatfast", QATFAST_BACKEND="fast")
    assert "QATFAST_BACKEND must be one of native, reference, got 'fast'" in result.stderr


def test_a_lower_instruction_set_can_be_asked_for():
    code = "import qatfast; qatfast.ops.fake_quant([0.3], -1.0, 1.0); print(qatfast.build_info()['instruction_set'])"
    assert run_python(code, QATFAST_ISA="portable").stdout == "portable\n"
    assert run_python(code, without="QATFAST_ISA").stdout == f"{_core.cpu_features()[-1]}\n"


def test_an_instruction_set_that_is_not_there_is_refused():
    result = run_python("import qatfast", QATFAST_ISA="avx9")
    assert "qatfast: QATFAST_ISA must be an instruction set that this processor has" in result.stderr
    assert "got avx9" in result.stderr


def test_the_op_gives_the_same_bits_on_any_number_of_tensorflow_threads():
    code = """
import hashlib, sys, numpy as np, tensorflow as tf
tf.config.threading.set_intra_op_parallelism_threads(int(sys.argv[1]))
import qatfast
x = tf.constant(np.random.default_rng(0).normal(size=(900, 3000)).astype(np.float32))
results = []
for axis in (None, 0, 1):
    end = tf.ones([] if axis is None else [x.shape[axis]])
    results += qatfast.ops._native.qatfast_fake_quant_grad_with_range(
        x, x, -end, end, per_channel=axis is not None, axis=axis or 0)
print(hashlib.sha256(b"".join(r.numpy().tobytes() for r in results)).hexdigest())
"""
    digests = {run_python(code, arguments=[str(threads)]).stdout for threads in (1, 2, 7)}
    assert len(digests) == 1 and len(digests.pop()) == 65


def test_ops_have_gpu_kernels_if_and_only_if_cuda_is_compiled_in():
    from tensorflow.python.framework.kernels import get_registered_kernels_for_op

    built = bool(qatfast.build_info()["cuda_architectures"])
    for name in ("FakeQuant", "FakeQuantGrad", "FakeQuantGradWithRange", "LsqSymmetric", "LsqSymmetricGrad"):
        devices = {kernel.device_type for kernel in get_registered_kernels_for_op(f"Qatfast{name}").kernel}
        assert devices == ({"CPU", "GPU"} if built else {"CPU"})


def test_architectures_are_those_that_were_asked_for():
    architectures = qatfast.build_info()["cuda_architectures"]
    assert bool(architectures) == hasattr(_core, "cuda")
    assert not architectures or architectures[-1].endswith("-ptx")


def test_without_a_gpu_no_library_of_cuda_is_loaded():
    if tf.config.list_physical_devices("GPU"):
        pytest.skip("there is a GPU")
    code = (
        "import qatfast; qatfast.ops.fake_quant([1.0], -1.0, 1.0); "
        "print([line for line in open('/proc/self/maps') if 'libcuda.so' in line])"
    )
    run = run_python(code)
    assert run.stdout.strip() == "[]", run.stderr
