"""Finds and loads the op library, after checking the TensorFlow that it was built for."""

import importlib.machinery
import os
import platform
from pathlib import Path

import tensorflow as tf

_BACKENDS = ("native", "reference")


def backend() -> str:
    """`native`, or `reference` where QATFAST_BACKEND=reference asks for plain TensorFlow."""
    name = os.environ.get("QATFAST_BACKEND", "native")
    if name not in _BACKENDS:
        raise ImportError(f"qatfast: QATFAST_BACKEND must be one of {', '.join(_BACKENDS)}, got {name!r}")
    return name


def load_ops():
    """The module of raw ops in the op library.

    Raises:
        ImportError: the library is missing, or was built for another TensorFlow than the one that runs.
    """
    core = _load_core()
    path = _library_path()
    try:
        built_for = core.build_facts()["tensorflow"]
    except ValueError as error:  # QATFAST_ISA asks for what there is not
        raise ImportError(f"qatfast: {error}") from None
    if path is None:
        raise ImportError(
            "qatfast: the op library is not built. Install the package where TensorFlow is installed: "
            "pip install --no-build-isolation ."
        )
    if _minor(built_for) != _minor(tf.__version__):
        raise ImportError(
            f"qatfast: built for TensorFlow {built_for}, but TensorFlow {tf.__version__} is installed, and an op "
            f"library runs on one minor version only. Either pip install 'tensorflow=={_minor(built_for)}.*', or "
            "build qatfast for the installed one: pip install --force-reinstall --no-deps --no-build-isolation ."
        )
    return tf.load_op_library(str(path))


def build_info() -> dict:
    """What this installation of qatfast is made of.

    Returns:
        A dict of `version` (qatfast's), `backend` ("native" or "reference"), `tensorflow` (that runs),
        `tensorflow_built_for`, `python`, `compiler`, `instruction_set` (that the kernels use here: the best, or what
        QATFAST_ISA asks for), `instruction_sets` (that they could use here, the best last), `cuda_architectures`
        (compiled in; empty without CUDA) and `library` (path of the op library; None if it is not built).
    """
    core = _load_core()
    facts = core.build_facts()
    path = _library_path()
    return {
        "version": facts["version"],
        "backend": backend(),
        "tensorflow": tf.__version__,
        "tensorflow_built_for": facts["tensorflow"],
        "python": platform.python_version(),
        "compiler": facts["compiler"],
        "instruction_set": facts["instruction_set"],
        "instruction_sets": core.cpu_features(),
        "cuda_architectures": facts["cuda_architectures"],
        "library": None if path is None else str(path),
    }


def _load_core():
    try:
        from qatfast import _core
    except ImportError as error:
        raise ImportError(
            f"qatfast: the compiled module cannot be loaded ({error}). Install the package with pip install ., and "
            "import it from outside its source folder."
        ) from error
    return _core


def _library_path() -> Path | None:
    folder = Path(__file__).parent
    candidates = (folder / f"_ops{suffix}" for suffix in importlib.machinery.EXTENSION_SUFFIXES)
    return next((path for path in candidates if path.exists()), None)


def _minor(version: str) -> str:
    return ".".join(version.split(".")[:2])
