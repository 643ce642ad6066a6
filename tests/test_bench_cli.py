"""`python -m qatfast`: what it prints, what it refuses, and that nothing wrong gets timed. No test looks at a time."""

import itertools
import json
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf
from models import KERAS, conv_net, dense_net, images, layers

import qatfast
from qatfast.__main__ import main
from qatfast.benchmark import correctness, figures, memory, timing
from qatfast.benchmark.implementations import (
    FORMULAS,
    OURS,
    REFERENCE,
    STOCK,
    Implementation,
    computed_by,
    formulas_source,
)
from qatfast.benchmark.op_case import BACKWARD, BOTH, BOTH_WITH_RANGE, FORWARD, OPS, OpCase, make_run
from qatfast.benchmark.op_comparison import COMPARATORS, checked_runs
from qatfast.benchmark.training import random_batch

LAYOUTS = [((50, 40), None), ((6, 40, 8), -2), ((3, 3, 40, 1), 2)]


@pytest.fixture
def saved(tmp_path):
    """Saves a model, and returns the path."""

    def save(model):
        path = tmp_path / f"{model.name}.keras"
        model.save(path)
        return str(path)

    return save


def refusal(capsys, *argv):
    """The sentence with which the command line is refused."""
    with pytest.raises(SystemExit) as stopped:
        main(argv)
    assert stopped.value.code == 2
    return capsys.readouterr().err.splitlines()[-1]


def table(text, first_column):
    """The rows, header first, of the Markdown table whose header starts so."""
    lines = text.splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith(f"| {first_column} |"))
    rows = [lines[start]]
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            break
        rows.append(line)
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]


def test_info_prints_every_fact_of_build_info(capsys):
    main(["info"])
    printed = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert printed.keys() == qatfast.build_info().keys()
    assert printed["tensorflow"] == tf.__version__


def test_info_as_json_is_build_info(capsys):
    main(["info", "--json"])
    assert json.loads(capsys.readouterr().out) == qatfast.build_info()


def test_the_package_runs_as_a_module():
    done = subprocess.run([sys.executable, "-m", "qatfast", "info", "--json"], capture_output=True, check=True, cwd="/")
    assert json.loads(done.stdout)["version"] == qatfast.build_info()["version"]


def test_a_model_gets_a_row_per_training_step_and_a_sentence_per_method(capsys, saved):
    main(["bench", "--model", saved(conv_net()), "--batch", "2", "--rounds", "1"])
    text = capsys.readouterr().out
    assert [row[2] for row in table(text, "model")[1:]] == [
        "float",
        "stock STE",
        "ours STE",
        "formulas LSQ",
        "ours LSQ",
    ]
    assert "\nSTE: a quantized training step takes" in text and "\nLSQ: a quantized training step takes" in text


def test_the_quantized_tensors_of_a_model_are_counted_by_shape_and_axis(capsys, saved):
    main(["bench", "--model", saved(dense_net()), "--batch", "2", "--rounds", "1", "--training", "STE"])
    assert sorted(table(capsys.readouterr().out, "quantized")[1:]) == [
        ["activation", "[2, 5]", "-", "1", "10"],
        ["activation", "[2, 6]", "-", "1", "12"],
        ["all", "", "", "4", "67"],
        ["weight", "[5, 3]", "1", "1", "15"],
        ["weight", "[6, 5]", "1", "1", "30"],
    ]


def test_a_model_is_measured_under_xla(capsys, saved):
    options = ["--batch", "2", "--rounds", "1", "--training", "STE", "--xla", "--per-tensor", "--grid", "uniform"]
    main(["bench", "--model", saved(dense_net()), *options])
    text = capsys.readouterr().out
    steps = [row[2] for row in table(text, "model")[1:]]
    assert steps[3:] == ["float, XLA", "stock STE, XLA", "ours STE, XLA"]
    assert ["weight", "[6, 5]", "-", "1", "30"] in table(text, "quantized")


def test_the_tables_are_written_to_the_output_file(capsys, tmp_path):
    path = tmp_path / "table.md"
    main(["bench", "--shape", "8,4", "--rounds", "1", "--direction", "forward", "--output", str(path)])
    assert path.read_text() == capsys.readouterr().out


def test_an_op_is_measured_on_every_shape_and_axis(capsys):
    options = ["--num-bits", "4", "--rounds", "1", "--direction", "forward", "--direction", "backward"]
    main(["bench", "--shape", "8,4", "--shape", "3,5,7", "--axis", "-1", "--axis", "none", *options])
    rows = table(capsys.readouterr().out, "op")[1:]
    assert [row[2:5] for row in rows] == [
        [shape, axis, direction]
        for shape in ("[8, 4]", "[3, 5, 7]")
        for axis in ("-1", "-")
        for direction in ("forward", "backward")
    ]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["bench"], "one of the arguments --model --shape is required"),
        (["bench", "--model", "a", "--shape", "3"], "argument --shape: not allowed with argument --model"),
        (["bench", "--shape", "3", "--batch", "2"], "--batch goes with --model only"),
        (["bench", "--model", "nothing.keras", "--axis", "1"], "--axis goes with --shape only"),
        (["bench", "--model", "nothing.keras"], "--model must be a file or a folder, got 'nothing.keras'"),
        (["bench", "--shape", "3,x"], "a shape must be positive integers with commas between, got '3,x'"),
        (["bench", "--shape", "3,0"], "a shape must be positive integers with commas between, got '3,0'"),
        (["bench", "--shape", "3", "--axis", "last"], "an axis must be an integer or none, got 'last'"),
        (["bench", "--shape", "3", "--axis", "1"], "axis must be one of shape (3,), or None per tensor, got 1"),
        (["bench", "--shape", "3", "--num-bits", "1"], "num_bits must be an integer from 2 to 16, got 1"),
        (["bench", "--shape", "3", "--rounds", "0"], "must be a positive integer, got '0'"),
        (["bench", "--shape", "3", "--op", "lsq"], "invalid choice: 'lsq'"),
        (["bench", "--shape", "9" * 4999], "a shape must be positive integers with commas between, got '999"),
        (
            ["bench", "--shape", "4294967296,2147483648"],
            "--shape: a shape must have fewer than 2^63 elements, got '429",
        ),
        (["bench", "--shape", "100000,100000,1000"], "--shape must fit in memory, got (100000, 100000, 1000): takes"),
        (["bench", "--shape", "8", "--shape", "9" * 15], "--shape must fit in memory, got (999999999999999,): takes"),
        (["bench", "--shape", ",".join(["1"] * 33)], "shape must have at most 32 axes, got 33"),
        (["bench", "--shape", "3", "--quiet-ms", "-1"], "--quiet-ms: must be a positive number, got '-1'"),
        (["bench", "--shape", "3", "--quiet-ms", "nan"], "--quiet-ms: must be a positive number, got 'nan'"),
        (
            ["bench", "--shape", "3", "--quiet-timeout", "soon"],
            "--quiet-timeout: must be a positive number, got 'soon'",
        ),
        (["bench", "--shape", "3", "--output", "/"], "--output: must be a file, got '/'"),
        (
            ["bench", "--shape", "3", "--output", "/no/t.md"],
            "--output: must be in a folder that exists, got '/no/t.md'",
        ),
        (["bench", "--model", "a", "--weight-bits", "1"], "--weight-bits: must be an integer from 2 to 16, got '1'"),
        (["bench", "--model", "a", "--activation-bits", "17"], "--activation-bits: must be an integer from 2 to 16"),
        (
            ["bench", "--shape", "3", *"--op fake_quant --op lsq_uniform".split(), "--direction", BOTH_WITH_RANGE],
            f"--direction {BOTH_WITH_RANGE} is of fake_quant only",
        ),
    ],
)
def test_what_cannot_be_measured_is_refused_with_a_sentence_before_anything_is_measured(
    capsys, monkeypatch, argv, message
):
    monkeypatch.setattr("qatfast.benchmark.command.checked_runs", None)
    assert message in refusal(capsys, *argv)


def test_a_batch_that_does_not_fit_in_memory_is_refused(capsys, saved):
    path = saved(dense_net())
    message = refusal(capsys, "bench", "--model", path, "--batch", "1" + "0" * 15)
    assert "the batch of input 'input_" in message and "must fit in memory, got (1000000000000000, 6): takes" in message


def test_a_shape_that_just_does_not_fit_is_refused_and_one_that_fits_is_not(monkeypatch):
    monkeypatch.setattr(memory, "available_bytes", lambda: 2**30)
    memory.check_fits("--shape", (2**24,), 2**24, 64)
    with pytest.raises(ValueError, match=r"got \(16777217,\): takes about 1.0 GiB, and 1.0 GiB are free"):
        memory.check_fits("--shape", (2**24 + 1,), 2**24 + 1, 64)


def test_the_memory_that_is_free_is_what_the_machine_or_its_container_leaves(monkeypatch, tmp_path):
    files = {"_MEMORY_INFO": "MemTotal: 9 kB\nMemAvailable:  4096 kB\n", "_LIMIT": "max\n", "_USED": "1000\n"}
    for name, text in files.items():
        (tmp_path / name).write_text(text)
        monkeypatch.setattr(memory, name, tmp_path / name)
    assert memory.available_bytes() == 4096 * 1024
    (tmp_path / "_LIMIT").write_text("3000\n")
    assert memory.available_bytes() == 2000
    for name in files:
        (tmp_path / name).unlink()
    assert memory.available_bytes() is None


@pytest.mark.parametrize(
    "error", [MemoryError("9 GiB"), tf.errors.ResourceExhaustedError(None, None, "9 GiB")], ids=["NumPy", "TensorFlow"]
)
def test_memory_that_runs_out_is_a_sentence(capsys, monkeypatch, error):
    def run_out(*_):
        raise error

    monkeypatch.setattr("qatfast.benchmark.command.checked_runs", run_out)
    assert "out of memory: 9 GiB" in refusal(capsys, "bench", "--shape", "3")


def test_a_file_that_cannot_be_written_after_all_is_a_sentence(capsys, monkeypatch, tmp_path):
    folder = tmp_path / "goes"
    folder.mkdir()
    monkeypatch.setattr("qatfast.benchmark.command.bench_op", lambda _: folder.rmdir() or "the tables")
    path = str(folder / "table.md")
    with pytest.raises(SystemExit) as stopped:
        main(["bench", "--shape", "3", "--output", path])
    printed = capsys.readouterr()
    assert stopped.value.code == 2 and f"No such file or directory: '{path}'" in printed.err
    assert printed.out == "the tables\n"


def test_a_folder_without_a_model_is_refused(capsys, tmp_path):
    message = refusal(capsys, "bench", "--model", str(tmp_path))
    assert f"--model must be a model that Keras loads, got '{tmp_path}'" in message


def test_models_that_cannot_be_measured_are_refused(capsys, tmp_path):
    words = tf.keras.Input((1,), dtype=tf.string, name="words")
    hashed = tf.keras.layers.Hashing(4, output_mode="one_hot")(words)
    tf.keras.Model(words, tf.keras.layers.Dense(2)(hashed)).save(tmp_path / "words.keras")
    message = refusal(capsys, "bench", "--model", str(tmp_path / "words.keras"))
    assert "input 'words' must be of real numbers, got string" in message


@pytest.mark.keras2_only(reason="Keras 3 loads no subclassed model whose class is not registered")
def test_a_subclassed_model_is_refused(capsys, tmp_path):
    class Subclassed(tf.keras.Model):
        def call(self, inputs):
            return tf.nn.relu(inputs)

    model = Subclassed()
    model(np.ones((2, 6), np.float32))
    model.save(tmp_path / "subclassed")
    message = refusal(capsys, "bench", "--model", str(tmp_path / "subclassed"))
    assert "model must be Sequential or Functional, got the subclassed model" in message


def test_a_file_that_is_no_model_is_refused(capsys, tmp_path):
    path = tmp_path / "text.keras"
    path.write_text("no model")
    assert "--model must be a model that Keras loads" in refusal(capsys, "bench", "--model", str(path))


def test_code_in_a_file_is_run_only_where_that_is_asked_for(capsys, saved):
    stack = [tf.keras.layers.Dense(4), tf.keras.layers.Lambda(lambda x: 2 * x), tf.keras.layers.Dense(2)]
    path = saved(tf.keras.Sequential([tf.keras.Input((6,)), *stack], name="doubling"))
    message = refusal(capsys, "bench", "--model", path)
    assert "with a Python lambda in layer 'lambda" in message and "(here: --no-safe-mode)" in message
    assert "--no-safe-mode goes with --model only" in refusal(capsys, "bench", "--shape", "3", "--no-safe-mode")
    main(["bench", "--model", path, "--no-safe-mode", "--rounds", "1", "--training", "STE"])
    assert "STE: a quantized training step takes" in capsys.readouterr().out


def test_a_quantized_model_is_refused(capsys, saved):
    path = saved(qatfast.quantize_model(conv_net(), images()))
    assert "model must be a float model" in refusal(capsys, "bench", "--model", path)


def test_an_open_input_shape_is_asked_for_and_a_wrong_one_refused(capsys, saved):
    image = tf.keras.Input((None, None, 3), name="image")
    x = tf.keras.layers.Conv2D(2, 3, activation="relu")(image)
    path = saved(tf.keras.Model(image, tf.keras.layers.Conv2D(2, 1)(x), name="open"))
    assert "the shape of input 'image' is open" in refusal(capsys, "bench", "--model", path)
    wrong = refusal(capsys, "bench", "--model", path, "--input-shape", "8,8,4")
    assert "must fit (None, None, 3), got (8, 8, 4)" in wrong
    two = refusal(capsys, "bench", "--model", path, "--input-shape", "8,8,3", "--input-shape", "8,8,3")
    assert "one input shape for each of 'image', got 2" in two
    main(["bench", "--model", path, "--input-shape", "8,8,3", "--batch", "2", "--rounds", "1", "--training", "STE"])
    tensors = table(capsys.readouterr().out, "quantized")[1:]
    assert ["activation", "[2, 8, 8, 3]", "-", "1", "384"] in tensors
    assert ["activation", "[2, 6, 6, 2]", "-", "1", "144"] in tensors


def test_inputs_of_integers_get_integers_and_a_fixed_batch_stays():
    inputs = [
        tf.keras.Input((5,), batch_size=3, dtype=tf.int32, name="ids"),
        tf.keras.Input((4, 2), batch_size=3, name="x"),
    ]
    ids, x = random_batch(KERAS, tf.keras.Model(inputs, [layers.Activation("linear")(tensor) for tensor in inputs]), 16)
    assert ids.shape == (3, 5) and ids.dtype == np.int32 and set(np.unique(ids)) <= {0, 1}
    assert x.shape == (3, 4, 2) and x.dtype == np.float32


@pytest.mark.parametrize(("shape", "axis"), LAYOUTS)
@pytest.mark.parametrize(
    ("op", "direction"), [*itertools.product(OPS, (FORWARD, BACKWARD, BOTH)), ("fake_quant", BOTH_WITH_RANGE)]
)
def test_every_comparator_computes_what_ours_computes(op, direction, shape, axis):
    runs = checked_runs(OpCase(op, shape, axis, 4), direction, ["float32"], COMPARATORS)
    assert {"ours", "memcpy", "empty call"} < runs.keys()


def test_half_types_are_checked_and_named():
    runs = checked_runs(OpCase("fake_quant", (8, 4), 1), BOTH, ["float32", "bfloat16", "float16"], [])
    assert list(runs) == ["ours", "ours bfloat16", "ours float16", "empty call", "memcpy"]
    assert runs["ours bfloat16"]()[0].dtype == tf.bfloat16


@pytest.mark.parametrize("direction", [FORWARD, BACKWARD, BOTH])
def test_a_wrong_result_is_not_timed(direction):
    case = OpCase("lsq_symmetric", (64, 32), 1, 4)
    right = correctness.expected(case, direction, tf.float32)
    wrong = FORMULAS._replace(lsq_symmetric=lambda x, t, **options: FORMULAS.lsq_symmetric(x, 1.1 * t, **options))
    result = make_run(case, wrong, direction)()
    with pytest.raises(ValueError, match=r"ours: lsq_symmetric .* must be .*, got .* of the elements are wrong"):
        correctness.check_ours(case, direction, result, right)
    with pytest.raises(ValueError, match="other: lsq_symmetric"):
        correctness.check_other(case, direction, "other", result, right)


def test_one_wrong_bit_of_ours_is_not_timed():
    case = OpCase("fake_quant", (64, 32), None)
    (right,) = correctness.expected(case, FORWARD, tf.float32)
    off = right.numpy()
    off[3, 4] = np.nextafter(off[3, 4], np.float32(9))
    correctness.check_ours(case, FORWARD, (right,), (right,))
    with pytest.raises(ValueError, match=r"at \(.*3.*4.*\)"):
        correctness.check_ours(case, FORWARD, (tf.constant(off),), (right,))


def test_another_implementation_computes_a_traced_model_and_ours_comes_back():
    model = qatfast.quantize_model(dense_net(), np.ones((4, 6), np.float32))
    zeros = Implementation("zeros", lambda x, *_, **__: tf.zeros_like(x), None, None)
    ours = qatfast.ops.fake_quant
    traced = tf.function(lambda x: model(x, training=True))
    with computed_by(zeros):
        replaced = traced(tf.ones([4, 6]))
    assert qatfast.ops.fake_quant is ours
    assert not np.any(replaced) and np.any(model(tf.ones([4, 6])))


def test_a_model_traced_without_quantizers_is_not_passed_off_as_another_implementation():
    with pytest.raises(RuntimeError, match="no quantizer called an op of stock"):
        with computed_by(STOCK):
            dense_net()(tf.ones([4, 6]))


def test_slow_functions_are_timed_in_the_first_rounds_only(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(timing.time, "perf_counter", lambda: now[0])

    def taking(seconds):
        def run():
            now[0] += seconds

        return run

    turns = timing.Turns({"fast": taking(0.001), "slow": taking(0.1), "slowest": taking(2.0)})
    for _ in range(10):
        turns.take_round()
    assert {name: len(times) for name, times in turns.seconds.items()} == {"fast": 10, "slow": 3, "slowest": 2}
    assert turns.medians() == pytest.approx({"fast": 0.001, "slow": 0.1, "slowest": 2.0})


def test_ratios_are_given_with_and_without_the_call_of_a_function():
    seconds = {"ours": 6e-3, "ours float16": 3.5e-3, "empty call": 1e-3, "memcpy": 4e-3, "stock": 12e-3}
    assert figures.op_ratios({"dtype": "float32", "seconds": seconds}) == pytest.approx(
        {
            "ours / memcpy": 1.5,
            "net / memcpy": 1.25,
            "float16 / float32": 3.5 / 6,
            "float16 / float32, net": 0.5,
            "stock / ours": 2.0,
        }
    )


def test_the_time_of_an_op_in_a_chain_is_the_difference_to_a_single_op():
    seconds = {"ours": 33e-6, "single ours": 1e-6, "stock": 65e-6, "single stock": 1e-6}
    measurement = {"chain": 33, "seconds": seconds}
    assert figures.microseconds_per_op(measurement) == pytest.approx({"ours": 1.0, "stock": 2.0})
    assert figures.small_ratios(measurement) == pytest.approx({"ours / stock": 0.5})


def test_mct_itself_is_measured_where_it_is_installed_on_its_tensorflow():
    if not tf.__version__.startswith("2.15"):
        pytest.skip("MCT stops at TensorFlow 2.15")
    pytest.importorskip("model_compression_toolkit")
    assert formulas_source() == "MCT's functions"


def test_ours_is_called_through_the_public_functions():
    assert OURS.fake_quant is qatfast.ops.fake_quant and REFERENCE.lsq_uniform is qatfast.reference.lsq_uniform
