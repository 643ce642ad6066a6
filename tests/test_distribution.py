"""Models that were quantized under a distribution strategy train as on one device.

In float64: replicas add gradients in another order, and in float32 that soon moves a value across a tie, which shows
as 1e-6 of the loss (on TensorFlow 2.15 after 40 steps) and is not what is tested.
"""

import json
import signal
import socket

import numpy as np
import pytest
import training_runs

EPOCHS = 5
OPTIONS = ["--method", "LSQ", "--epochs", EPOCHS, "--floatx", "float64"]
TOLERANCE = 1e-10  # of a loss; 1e-6 is what is promised


@pytest.fixture(scope="module")
def one_device(tmp_path_factory):
    """The folder of the run on one device."""
    folder = tmp_path_factory.mktemp("single")
    training_runs.run(folder, *OPTIONS, "--strategy", "single")
    return folder


def assert_trained_as_on_one_device(what, folders, one_device, replicas):
    """Losses near, and every weight the same on all `replicas` of a process and in all processes."""
    expected = np.asarray(training_runs.losses(one_device))
    first = training_runs.weights(folders[0])
    thresholds = [name for name in first if "ptq_threshold" in name]
    assert len(thresholds) == replicas * sum("ptq_threshold" in name for name in training_runs.weights(one_device))
    for folder in folders:
        losses = np.asarray(training_runs.losses(folder))
        assert len(losses) == EPOCHS
        apart = np.max(np.abs(losses - expected) / expected)
        print(f"{what}: losses of {len(losses)} epochs within {apart:.1e} of one device's")
        assert apart <= TOLERANCE
        found = training_runs.weights(folder)
        assert found.keys() == first.keys()
        for name, value in found.items():
            of_replica_0 = name.rsplit(" ", 1)[0] + " 0"
            np.testing.assert_array_equal(value, first[of_replica_0], err_msg=name)


def test_two_replicas_of_a_mirrored_strategy(one_device, tmp_path):
    folder = tmp_path / "mirrored"
    training_runs.run(folder, *OPTIONS, "--strategy", "mirrored")
    assert_trained_as_on_one_device("MirroredStrategy", [folder], one_device, replicas=2)


def free_ports(count):
    """Ports on the loopback address that nobody listens on."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def start_workers(folders, backup, kill_at=None):
    """Starts a cluster of as many workers as there are folders, the last of which may kill itself at a step."""
    workers = [f"127.0.0.1:{port}" for port in free_ports(len(folders))]
    processes = []
    for index, folder in enumerate(folders):
        task = {"cluster": {"worker": workers}, "task": {"type": "worker", "index": index}}
        kill = ["--kill-at", kill_at] if kill_at and folder is folders[-1] else []
        options = [*OPTIONS, "--strategy", "workers", "--backup", backup, *kill]
        processes.append(training_runs.start(folder, *options, TF_CONFIG=json.dumps(task)))
    return [process.wait(timeout=training_runs.TIMEOUT) for process in processes]


@pytest.mark.keras2_only(reason="Keras 3's fit hands a model PerReplica batches under MultiWorkerMirroredStrategy")
def test_two_workers_one_of_which_is_killed_and_restarted(one_device, tmp_path):
    folders = [tmp_path / "worker_0", tmp_path / "worker_1"]
    killed_at = 2 * training_runs.STEPS_PER_EPOCH + 5
    survivor, killed = start_workers(folders, tmp_path / "backup", killed_at)
    assert killed == -signal.SIGKILL
    assert survivor > 0  # told that its peer is gone, it ends: whoever starts workers starts both again
    assert len(training_runs.losses(folders[0])) < EPOCHS
    statuses = start_workers(folders, tmp_path / "backup")
    logs = "\n".join((folder / "log.txt").read_text()[-3000:] for folder in folders)
    assert statuses == [0, 0], logs
    assert_trained_as_on_one_device("MultiWorkerMirroredStrategy, a kill", folders, one_device, replicas=1)
