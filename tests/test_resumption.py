"""Training is the same bits again: when it is repeated, and when it was killed and resumed with BackupAndRestore.

A run is resumed at the start of the epoch in which it was killed, since `fit` begins its data again: the steps of that
epoch are taken twice, from the same state.
"""

import random
import signal

import numpy as np
import pytest
import training_runs

import qatfast

METHODS = [method.name for method in qatfast.TrainingMethod]
EPOCHS = 20  # 200 steps
KILLS = 3


@pytest.fixture(scope="module", params=METHODS)
def undisturbed(request, tmp_path_factory):
    """The method, and the folder of a run that nobody disturbed."""
    folder = tmp_path_factory.mktemp(request.param)
    training_runs.run(folder, "--method", request.param, "--epochs", EPOCHS)
    return request.param, folder


def assert_same_run(folder, expected):
    """Losses of every epoch, and the state of the model and its optimizer after the last."""
    assert training_runs.losses(folder) == training_runs.losses(expected)
    assert len(training_runs.losses(folder)) == EPOCHS
    actual, wanted = training_runs.weights(folder), training_runs.weights(expected)
    assert actual.keys() == wanted.keys()
    assert any("threshold" in name for name in wanted)
    for name, value in wanted.items():
        np.testing.assert_array_equal(actual[name], value, err_msg=name)


def test_200_deterministic_steps_are_the_same_bits_twice(undisturbed, tmp_path):
    method, expected = undisturbed
    training_runs.run(tmp_path / "again", "--method", method, "--epochs", EPOCHS)
    assert_same_run(tmp_path / "again", expected)
    print(f"{method}: {EPOCHS * training_runs.STEPS_PER_EPOCH} steps twice: equal bits")


def test_a_run_that_is_killed_and_resumed_ends_with_the_same_bits(undisturbed, tmp_path):
    method, expected = undisturbed
    folder, options = tmp_path / "killed", ["--method", method, "--epochs", EPOCHS, "--backup", tmp_path / "backup"]
    seed = random.randrange(2**32)
    # Each run is killed in the first third of all steps after its own start, so that none comes to the end.
    steps = random.Random(seed).choices(range(1, EPOCHS * training_runs.STEPS_PER_EPOCH // KILLS), k=KILLS)
    print(f"{method}: killed after {steps} steps of its runs (seed {seed})")
    for step in steps:
        training_runs.run(folder, *options, "--kill-at", step, status=-signal.SIGKILL)
    training_runs.run(folder, *options)
    assert_same_run(folder, expected)
