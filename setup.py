"""Builds the two extensions; everything else about the package is in pyproject.toml.

`qatfast._ops` is the TensorFlow op library, compiled against the TensorFlow that is installed where this runs (under
build isolation: the newest one that pyproject.toml allows), to whose minor version the wheel is then pinned.
`qatfast._core` is the pybind11 module, the same kernels on NumPy arrays.

QATFAST_JOBS sets how many files compile at once (default: the number of processors).
"""

import os
import re
import shutil
from pathlib import Path

from pybind11.setup_helpers import ParallelCompile, Pybind11Extension
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent
VERSION = re.search(r'^version = "(.+)"', (ROOT / "pyproject.toml").read_text(), re.MULTILINE).group(1)

# Bit-exactness: no contraction into fused multiply-add. The other two flags let loops become vectors, and change
# no result.
KERNEL_FLAGS = ["-O3", "-std=c++17", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math", "-Wall", "-Wextra"]
CORE_SOURCES = ["csrc/core/cpu_execution.cc", "csrc/core/fake_quant_cpu.cc"]


def tensorflow_extension(tf) -> Extension:
    """The op library, with the flags that TensorFlow asks for; its headers are taken as system headers."""
    compile_flags = [re.sub("^-I", "-isystem", flag) for flag in tf.sysconfig.get_compile_flags()]
    return Extension(
        "qatfast._ops",
        sources=["csrc/tf/fake_quant_ops.cc", *CORE_SOURCES],
        include_dirs=["csrc"],
        extra_compile_args=[*KERNEL_FLAGS, *compile_flags, "-Wno-unused-parameter"],
        extra_link_args=tf.sysconfig.get_link_flags(),
        language="c++",
    )


def core_extension(tf) -> Extension:
    """The pybind11 module, which knows what the op library was built for."""
    macros = [("QATFAST_VERSION", f'"{VERSION}"'), ("QATFAST_TENSORFLOW_VERSION", f'"{tf.__version__}"')]
    return Pybind11Extension(
        "qatfast._core",
        sources=["csrc/py/module.cc", *CORE_SOURCES],
        include_dirs=["csrc"],
        define_macros=macros,
        extra_compile_args=KERNEL_FLAGS,
        cxx_std=17,
    )


def requirements(tf) -> list[str]:
    """What the wheel needs at run time: the TensorFlow minor version that it was built for, and Keras 2 for it."""
    minor = ".".join(tf.__version__.split(".")[:2])
    legacy_keras = [f"tf-keras=={minor}.*"] if tuple(map(int, minor.split("."))) >= (2, 16) else []
    return [f"tensorflow=={minor}.*", *legacy_keras, "mct-quantizers>=1.6", "numpy", "tqdm"]


class FreshBuildExt(build_ext):
    """build_ext that never reuses a library of an earlier build, which may be one for another TensorFlow.

    Compiles through ccache where there is one.
    """

    def build_extensions(self):  # noqa: D102
        self.force = True
        compiler = self.compiler.compiler_so
        if shutil.which("ccache") and "ccache" not in compiler[0]:
            for name in ("compiler_so", "compiler_so_cxx"):
                self.compiler.set_executable(name, ["ccache", *getattr(self.compiler, name, compiler)])
        super().build_extensions()


os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
try:
    import tensorflow
except ImportError as error:
    raise SystemExit("qatfast compiles against TensorFlow: install it first, or build with isolation") from error

ParallelCompile("QATFAST_JOBS", default=os.cpu_count()).install()
setup(
    ext_modules=[core_extension(tensorflow), tensorflow_extension(tensorflow)],
    install_requires=requirements(tensorflow),
    cmdclass={"build_ext": FreshBuildExt},
)
