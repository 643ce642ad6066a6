"""What the tests share: settings, and each backend behind one fixture."""

import functools
import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import pytest  # noqa: E402
import tensorflow as tf  # noqa: E402
from hypothesis import HealthCheck, settings  # noqa: E402

import qatfast  # noqa: E402
from qatfast.flow.select import adapter_of_tf_keras  # noqa: E402

settings.register_profile("default", deadline=None, max_examples=100, suppress_health_check=list(HealthCheck))
settings.register_profile("ci", parent=settings.get_profile("default"), max_examples=2000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))

# Of tests that are about one Keras: which `tf.keras` they need.
KERAS_OF_MARKERS = {"keras2_only": "Keras 2", "keras3_only": "Keras 3"}
BACKENDS = {"native": qatfast.ops, "reference": qatfast.reference}


def pytest_configure(config):
    # Where a model of one input, once it is loaded, warns of a tensor there.
    if getattr(tf.keras, "__version__", "").startswith("3.10."):
        config.addinivalue_line("filterwarnings", "ignore:The structure of `inputs` doesn:UserWarning")


def pytest_collection_modifyitems(items):
    name = adapter_of_tf_keras().name
    for item in items:
        for marker, wanted in KERAS_OF_MARKERS.items():
            found = item.get_closest_marker(marker)
            if found and wanted != name:
                item.add_marker(pytest.mark.skip(reason=f"{wanted} only: {found.kwargs['reason']}"))


@pytest.fixture(autouse=True)
def placed_on_the_cpu(request):
    """Tests that are not about a GPU run on the CPU: a GPU cannot refuse the value of a parameter, for example."""
    if request.node.get_closest_marker("gpu") or not tf.config.list_physical_devices("GPU"):
        yield
        return
    with tf.device("CPU:0"):
        yield


@pytest.fixture(params=BACKENDS)
def backend(request):
    """The functions of each backend, by name: one test body holds both to the same results."""
    return functools.partial(function_of, request.param)


@pytest.fixture
def native():
    """The native functions, by name."""
    return functools.partial(function_of, "native")


def function_of(backend, name):
    function = getattr(BACKENDS[backend], name, None)
    if function is None:  # goes when the native functions have come
        pytest.skip(f"{backend} has no {name} yet")
    return function


@pytest.fixture
def fake_quant(backend):
    return backend("fake_quant")


@pytest.fixture
def lsq_symmetric(backend):
    return backend("lsq_symmetric")


@pytest.fixture
def lsq_uniform(backend):
    return backend("lsq_uniform")
