"""Machine code is read right: counted by hand in sass/kernels.sass, of which sass/kernels.cu is the source."""

import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
sys.path.insert(0, str(TESTS.parent / "tools"))

import gpu_limits  # noqa: E402
import hot_kernels  # noqa: E402
import sass  # noqa: E402
from kernel_figures import figures  # noqa: E402

CODE = dict(sass.functions((TESTS / "sass" / "kernels.sass").read_text().splitlines()))


def test_control_bits_name_the_scoreboard_of_a_load_and_who_waits_for_it():
    code = {line.address: line for line in CODE["Together"]}
    first, second, user, store = code[0xC0], code[0xD0], code[0x100], code[0x120]
    assert first.opcode == "LDG.E.128"
    assert first.is_wide_load and second.is_wide_load and store.is_wide_store
    assert first.write_scoreboard != sass.NO_SCOREBOARD
    assert first.write_scoreboard in user.waits
    assert user.write_scoreboard == sass.NO_SCOREBOARD
    assert not code[0xE0].waits & {first.write_scoreboard, second.write_scoreboard}


def test_guards_targets_and_ends_are_read():
    together, one_by_one = ({line.address: line for line in CODE[name]} for name in ("Together", "OneByOne"))
    branch = together[0x50]
    assert (branch.guard, branch.target, branch.falls_through) == ("!P0", 0x150, True)
    assert not together[0x140].falls_through  # EXIT
    assert one_by_one[0x40].falls_through  # @P0 EXIT
    conditional = one_by_one[0x440]  # @!P0 BRA !P2, 0x740
    assert (conditional.target, conditional.falls_through) == (0x740, True)
    assert one_by_one[0x1E0].target is None  # CALL comes back


def test_a_line_without_its_upper_half_is_refused():
    lines = (TESTS / "sass" / "kernels.sass").read_text().splitlines()
    first = next(i for i, line in enumerate(lines) if "/*0000*/" in line)
    with pytest.raises(ValueError, match="instruction must be of two lines"):
        list(sass.functions(lines[: first + 1] + lines[first + 2 :]))


def test_the_fast_path_of_a_kernel_without_a_loop_is_the_one_that_moves_packs():
    found = figures("Together<unsigned int>", CODE["Together"])
    assert (found.loads_in_flight, found.loads_of_batch) == (2, 2)
    assert (found.elements, found.instructions, found.prologue) == (8, 21, 0)
    assert found.bytes_moved == 64
    assert found.bytes_in_flight(blocks=3) == 3 * 256 * 2 * 16


def test_figures_of_a_loop_are_of_a_pass_past_the_slow_division():
    found = figures("OneByOne<float>", CODE["OneByOne"])
    assert (found.loads_in_flight, found.loads_of_batch) == (1, 2)
    assert (found.elements, found.instructions) == (8, 27)
    assert (found.prologue, found.prologue_loops, found.epilogue) == (16, 0, 1)
    assert found.clocks["ISSUE"] == 27 / 4
    assert found.clocks["XU"] == 2 * 2  # MUFU and FCHK
    assert found.clocks["LSU"] == 4 * 4


def test_loads_of_a_loop_that_loads_ahead_are_in_flight_together():
    def line(opcode, board=sass.NO_SCOREBOARD, waits=()):
        return sass.Instruction(0, "", opcode, "", board, frozenset(waits))

    load, store = line("LDG.E.128", 0), line("STG.E.128")
    ahead = [line("FADD", waits=[0]), store, load, load]
    assert sass.least_in_flight(ahead, [load, load, *ahead], ahead) == (2, 2)
    apart = [load, line("FADD", waits=[0]), load, line("FADD", waits=[0]), store]
    assert sass.least_in_flight(apart, apart, apart) == (1, 2)
    two_batches = [load, load, line("FADD", waits=[0]), store]
    assert sass.least_in_flight(two_batches * 2) == (2, 2)
    by_depth = [load, load, line("DEPBAR.LE")._replace(operands="SB0, 0x1"), store]
    assert sass.least_in_flight(by_depth) == (2, 2)
    assert sass.least_in_flight([load, line("DEPBAR.LE")._replace(operands="SB0, 0x1"), store]) == (0, 0)


@pytest.mark.parametrize(
    ("architecture", "registers", "shared_bytes", "expected"),
    [
        ("90", 32, 0, 8),
        ("90", 33, 0, 6),
        ("90", 140, 0, 1),
        ("75", 32, 0, 4),
        ("86", 32, 32 * 1024, 3),
        ("90a", 64, 0, 4),
    ],
)
def test_blocks_on_a_multiprocessor(architecture, registers, shared_bytes, expected):
    assert gpu_limits.blocks_per_multiprocessor(architecture, 256, registers, shared_bytes) == expected


def test_aims_that_are_missed_are_named():
    found = figures("PassMasked<float>", CODE["OneByOne"])
    kernel = hot_kernels.hot_kernel("PassMasked<float>", 40, found, {})
    assert kernel.misses() == ["1 of 2 loads in flight", "24 KB in flight, aim 32"]
    together = figures("PassMasked<unsigned int>", CODE["Together"])
    assert hot_kernels.hot_kernel("PassMasked<unsigned int>", 40, together, {}).misses() == []


def test_few_rows_cost_a_prologue_for_each_warp():
    found = figures("MapLanes<float, Forward>", CODE["OneByOne"])
    # A block of 9 rows and 128 columns: 4.5 elements a thread, where a pass takes 8.
    one_by_one = hot_kernels.COST_OF_ONE_ROW * 27
    assert hot_kernels.depthwise_per_element(found, 9 * 128) == (16 + 4.5 / 8 * one_by_one + 1) * 256 / 1152
    looped = found._replace(prologue_loops=10)  # 1,024 columns: the loop is passed four times
    passes = 4 * 27 + 4 / 8 * one_by_one
    assert hot_kernels.depthwise_per_element(looped, 9 * 1024) == (16 + 3 * 10 + passes + 1) * 256 / 9216
