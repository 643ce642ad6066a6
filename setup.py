"""Builds the two extensions; everything else about the package is in pyproject.toml.

`qatfast._ops` is the TensorFlow op library, compiled against the TensorFlow that is installed where this runs (under
build isolation: the newest one that pyproject.toml allows), to whose minor version the wheel is then pinned.
`qatfast._core` is the pybind11 module, the same kernels on arrays. Both link the library of the kernels, which is
compiled once, and the CUDA kernels, if they are built (cuda_build.py says when, and by what it is told).

QATFAST_JOBS           how many files compile at once (default: the number of processors)
QATFAST_TENSORFLOW=0   builds `_core` alone, and needs no TensorFlow: for
                       `python setup.py build_ext --build-lib DIR`, after which _core can be imported from DIR/qatfast
"""

import os
import re
import shutil
import sys
from pathlib import Path

from pybind11.setup_helpers import ParallelCompile, Pybind11Extension
from setuptools import Extension, setup
from setuptools.command.build_clib import build_clib
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent
sys.path.insert(0, str(ROOT))  # an isolated build has not got it
import cuda_build  # noqa: E402

JOBS = int(os.environ.get("QATFAST_JOBS", os.cpu_count() or 1))
VERSION = re.search(r'^version = "(.+)"', (ROOT / "pyproject.toml").read_text(), re.MULTILINE).group(1)

# Bit-exactness: no contraction into fused multiply-add. The other two flags let loops become vectors, and change
# no result.
FLAGS = ["-O3", "-std=c++17", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math", "-Wall", "-Wextra"]
# GCC 12 takes its own AVX-512 intrinsics for reads of uninitialized vectors (https://gcc.gnu.org/PR105593).
KERNEL_FLAGS = [*FLAGS, "-fPIC", "-Wno-maybe-uninitialized"]
TF_SOURCES = ["channel_op.cc", "fake_quant_ops.cc", "lsq_ops.cc", "straight_through_ops.cc"]


class Cuda:
    """What the CUDA kernels add to an extension: nothing where they are not built."""

    def __init__(self):
        toolkit = cuda_build.toolkit_to_use()
        self.macros, self.link = [], {}
        if toolkit is not None:
            architectures = ";".join(cuda_build.described_architectures())
            self.macros = [("QATFAST_CUDA", "1"), ("QATFAST_CUDA_ARCHITECTURES", f'"{architectures}"')]
            self.link = {
                "extra_objects": [str(kernel.object) for kernel in cuda_build.compile_kernels(toolkit, JOBS)],
                "library_dirs": [toolkit.library_dir],
                "libraries": ["cudart_static", "dl", "rt", "pthread"],
            }


def tensorflow_extension(tf, cuda: Cuda) -> Extension:
    """The op library, with the flags that TensorFlow asks for; its headers are taken as system headers."""
    compile_flags = [re.sub("^-I", "-isystem", flag) for flag in tf.sysconfig.get_compile_flags()]
    return Extension(
        "qatfast._ops",
        sources=[f"csrc/tf/{name}" for name in TF_SOURCES],
        include_dirs=["csrc"],
        define_macros=cuda.macros,
        extra_compile_args=[*FLAGS, *compile_flags, "-Wno-unused-parameter"],
        extra_link_args=tf.sysconfig.get_link_flags(),
        language="c++",
        **cuda.link,
    )


def core_extension(tensorflow_version: str, cuda: Cuda) -> Extension:
    """The pybind11 module, which knows what the op library was built for."""
    macros = [("QATFAST_VERSION", f'"{VERSION}"'), ("QATFAST_TENSORFLOW_VERSION", f'"{tensorflow_version}"')]
    return Pybind11Extension(
        "qatfast._core",
        sources=["csrc/py/module.cc", *(["csrc/py/cuda_functions.cc"] if cuda.macros else [])],
        include_dirs=["csrc"],
        define_macros=macros + cuda.macros,
        extra_compile_args=FLAGS,
        cxx_std=17,
        **cuda.link,
    )


def requirements(tf) -> list[str]:
    """What the wheel needs at run time: the TensorFlow minor version that it was built for, and what goes with it."""
    minor = ".".join(tf.__version__.split(".")[:2])
    keras_3 = ["keras>=3.10"] if tuple(map(int, minor.split("."))) >= (2, 16) else []
    return [f"tensorflow=={minor}.*", *keras_3, "mct-quantizers>=1.6", "numpy", "tqdm"]


def kernel_library() -> tuple[str, dict]:
    """The kernels, without TensorFlow or Python, as a static library."""
    sources, headers = (sorted(map(str, Path("csrc/core").glob(pattern))) for pattern in ("*.cc", "*.h"))
    recompile_after = {"": [*headers, "setup.py"]}
    return "qatfast_kernels", {
        "sources": sources, "obj_deps": recompile_after, "include_dirs": ["csrc"], "cflags": KERNEL_FLAGS
    }  # fmt: skip


def compile_through_ccache(compiler) -> None:
    """Has ccache, where there is one, remember what was compiled."""
    if shutil.which("ccache") and "ccache" not in compiler.compiler_so[0]:
        for name in ("compiler_so", "compiler_so_cxx"):
            compiler.set_executable(name, ["ccache", *getattr(compiler, name, compiler.compiler_so)])


class FreshBuildExt(build_ext):
    """build_ext that never reuses a library of an earlier build, which may be one for another TensorFlow."""

    def run(self):  # noqa: D102
        self.run_command("build_clib")  # which `setup.py build_ext` alone would leave out
        super().run()

    def build_extensions(self):  # noqa: D102
        self.force = True
        compile_through_ccache(self.compiler)
        super().build_extensions()


class CachedBuildClib(build_clib):
    """build_clib through ccache."""

    def build_libraries(self, libraries):  # noqa: D102
        compile_through_ccache(self.compiler)
        super().build_libraries(libraries)


def extensions() -> tuple[list[Extension], list[str]]:
    """The extensions, and what they need at run time."""
    if os.environ.get("QATFAST_TENSORFLOW", "1") == "0":
        return [core_extension("none", Cuda())], []
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    try:
        import tensorflow as tf
    except ImportError as error:
        raise SystemExit(
            "qatfast compiles against TensorFlow: install it first, or build with isolation. QATFAST_TENSORFLOW=0 "
            "builds the module _core alone."
        ) from error
    cuda = Cuda()
    return [core_extension(tf.__version__, cuda), tensorflow_extension(tf, cuda)], requirements(tf)


ParallelCompile("QATFAST_JOBS", default=os.cpu_count()).install()
ext_modules, install_requires = extensions()
setup(
    libraries=[kernel_library()],
    ext_modules=ext_modules,
    install_requires=install_requires,
    cmdclass={"build_ext": FreshBuildExt, "build_clib": CachedBuildClib},
)
