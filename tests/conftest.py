"""What the tests share: settings, and each backend behind one fixture."""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import pytest  # noqa: E402
from hypothesis import HealthCheck, settings  # noqa: E402

import qatfast  # noqa: E402

settings.register_profile("default", deadline=None, max_examples=100, suppress_health_check=list(HealthCheck))
settings.register_profile("ci", parent=settings.get_profile("default"), max_examples=2000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))

BACKENDS = {"native": qatfast.ops.fake_quant, "reference": qatfast.reference.fake_quant}


@pytest.fixture(params=BACKENDS)
def fake_quant(request):
    """`fake_quant` of each backend: one test body holds both to the same results."""
    return BACKENDS[request.param]
