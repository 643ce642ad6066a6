"""Reads the machine code (SASS) that cuobjdump prints: instructions, what each waits for, and the paths through it.

From sm_70 on an instruction is 128 bits. Bits 105 to 125 tell the scheduler what to do: for how many cycles to stall,
which of six scoreboards a load counts up until its result is there (write barrier) or its operands are read (read
barrier), and for which scoreboards to wait before the instruction is issued. The layout is that of Jia, Maggioni,
Staiger and Scarpazza, "Dissecting the NVIDIA Volta GPU architecture via microbenchmarking" (2018), chapter 2.
"""

import re
from collections.abc import Callable, Iterable, Iterator
from functools import cached_property
from typing import NamedTuple

NO_SCOREBOARD = 7
LINE = re.compile(r"^\s+/\*(?P<address>[0-9a-f]{4,})\*/\s+(?P<text>.*?)\s*;\s+/\* 0x(?P<low>[0-9a-f]{16}) \*/")
REST = re.compile(r"^\s+/\* 0x(?P<high>[0-9a-f]{16}) \*/")
GUARD = re.compile(r"@(?P<guard>!?U?P\w+)\s+(?P<text>.*)")


class Instruction(NamedTuple):
    """One instruction, and what its control bits say."""

    address: int
    guard: str  # the predicate that it depends on, such as !P0, or nothing
    opcode: str  # with modifiers: LDG.E.128
    operands: str
    write_scoreboard: int  # counted down when the result is there; NO_SCOREBOARD: none
    waits: frozenset[int]  # scoreboards that must be at zero before it is issued

    @property
    def name(self) -> str:
        """The opcode without modifiers: LDG."""
        return self.opcode.split(".")[0]

    @property
    def has(self) -> frozenset[str]:
        """The modifiers."""
        return frozenset(self.opcode.split(".")[1:])

    @property
    def is_global(self) -> bool:
        """Whether it loads from or stores to global memory."""
        return self.name in ("LDG", "STG", "LD", "ST")

    @property
    def is_wide_load(self) -> bool:
        """Whether it loads 16 bytes of global memory."""
        return self.name in ("LDG", "LD") and "128" in self.has

    @property
    def is_wide_store(self) -> bool:
        """Whether it stores 16 bytes to global memory."""
        return self.name in ("STG", "ST") and "128" in self.has

    @property
    def is_wide(self) -> bool:
        """Whether it moves 16 bytes of global memory."""
        return self.is_wide_load or self.is_wide_store

    @property
    def target(self) -> int | None:
        """Where it may jump to. A call comes back, and counts as no jump."""
        if self.name != "BRA":
            return None
        return int(self.operands.replace("`", "").split(",")[-1].strip(" ()"), 16)

    @property
    def falls_through(self) -> bool:
        """Whether the next instruction may be executed after it."""
        if self.guard in ("", "PT"):
            return not (self.name in ("EXIT", "RET", "BRX", "JMP") or (self.name == "BRA" and "," not in self.operands))
        return True


def instruction(text: str, address: int, low: int, high: int) -> Instruction:
    """What a line of the listing says."""
    guard = GUARD.match(text)
    if guard:
        text = guard["text"]
    opcode, _, operands = text.partition(" ")
    control = high >> 41
    waits = frozenset(board for board in range(6) if control >> 11 + board & 1)
    return Instruction(address, guard["guard"] if guard else "", opcode, operands.strip(), control >> 5 & 7, waits)


def functions(listing: Iterable[str]) -> Iterator[tuple[str, list[Instruction]]]:
    """(mangled name, instructions) of each function that `cuobjdump -sass` lists.

    Raises:
        ValueError: a line of code is followed by none with its upper 64 bits.
    """
    name, code, pending = "", [], None
    for line in listing:
        if "Function : " in line:
            if code:
                yield name, code
            name, code = line.split("Function : ")[1].strip(), []
        elif pending:
            rest = REST.match(line)
            if not rest:
                raise ValueError(f"functions: instruction must be of two lines, got {pending[0]!r} and {line!r}")
            code.append(instruction(pending["text"], int(pending["address"], 16), 0, int(rest["high"], 16)))
            pending = None
        else:
            pending = LINE.match(line)
    if code:
        yield name, code


Cost = Callable[[Instruction], tuple[int, ...]]


class Flow:
    """The basic blocks of a function, and ways through them.

    Blocks are numbered in the order of their addresses. A call is an instruction like others: what it calls is no part
    of the function's paths.
    """

    def __init__(self, code: list[Instruction]):
        index_of = {line.address: i for i, line in enumerate(code)}
        starts = {0}
        for i, line in enumerate(code):
            if line.target is not None or not line.falls_through or line.name == "EXIT":
                starts.add(i + 1)
            if line.target is not None:
                starts.add(index_of[line.target])
        starts = sorted(start for start in starts if start < len(code))
        block_of = {start: block for block, start in enumerate(starts)}
        self.blocks = [code[start:end] for start, end in zip(starts, [*starts[1:], len(code)], strict=True)]
        self.successors: list[list[int]] = []
        for block, end in enumerate([*starts[1:], len(code)]):
            last = self.blocks[block][-1]
            after = [block_of[end]] if last.falls_through and end < len(code) else []
            if last.target is not None and last.guard != "!PT":
                after.append(block_of[index_of[last.target]])
            self.successors.append(after)

    @cached_property
    def _searched(self) -> tuple[list[int], set[tuple[int, int]]]:
        """Blocks reached from the first in topological order, and the edges back to a block on the way there."""
        order, back, state = [], set(), {}
        stack = [(0, iter(self.successors[0]))]
        state[0] = "open"
        while stack:
            block, left = stack[-1]
            for after in left:
                if state.get(after) == "open":
                    back.add((block, after))
                elif after not in state:
                    state[after] = "open"
                    stack.append((after, iter(self.successors[after])))
                    break
            else:
                state[block] = "done"
                order.append(block)
                stack.pop()
        return order[::-1], back

    @cached_property
    def loops(self) -> dict[int, set[int]]:
        """For each block that a loop starts with, the blocks of the loop."""
        before: dict[int, list[int]] = {}
        for block, after in enumerate(self.successors):
            for next_block in after:
                before.setdefault(next_block, []).append(block)
        reached, back = set(self._searched[0]), self._searched[1]
        loops: dict[int, set[int]] = {}
        for latch, head in back:
            body = loops.setdefault(head, {head})
            waiting = [latch]
            while waiting:
                block = waiting.pop()
                if block not in body and block in reached:
                    body.add(block)
                    waiting += before.get(block, [])
        return loops

    def path(self, begin: int, ends: set[int], cost: Cost, within: set[int] | None = None) -> list[int] | None:
        """The blocks of the cheapest way from `begin` to one of `ends`, each block at most once, or None.

        Costs are tuples, compared from left to right, whose sums over the way are compared.
        """
        order, back = self._searched
        best: dict[int, tuple[tuple[int, ...], int | None]] = {begin: (self._cost(begin, cost), None)}
        for block in order:
            if block not in best:
                continue
            for after in self.successors[block]:
                if (block, after) in back or (within is not None and after not in within):
                    continue
                total = tuple(a + b for a, b in zip(best[block][0], self._cost(after, cost), strict=True))
                if after not in best or total < best[after][0]:
                    best[after] = (total, block)
        found = min((end for end in ends if end in best), key=lambda end: best[end][0], default=None)
        if found is None:
            return None
        way, block = [], found
        while block is not None:
            way.append(block)
            block = best[block][1]
        return way[::-1]

    def _cost(self, block: int, cost: Cost) -> tuple[int, ...]:
        return tuple(map(sum, zip(*map(cost, self.blocks[block]), strict=True)))

    def latches(self, head: int) -> set[int]:
        """The blocks that go back to the start of a loop."""
        return {latch for latch, start in self._searched[1] if start == head}

    @cached_property
    def exits(self) -> set[int]:
        """The blocks that end the thread."""
        return {i for i, block in enumerate(self.blocks) if block[-1].name == "EXIT" and i in set(self._searched[0])}

    def code(self, way: list[int]) -> list[Instruction]:
        """The instructions of a way."""
        return [line for block in way for line in self.blocks[block]]


def least_in_flight(
    code: list[Instruction], before: Iterable[Instruction] = (), after: Iterable[Instruction] = ()
) -> tuple[int, int]:
    """(loads in flight, loads of the batch) of the batch of 16-byte loads of which the fewest are in flight together.

    A batch is the wide loads of `code` between one wide store and the next. Those of a batch are in flight that were
    issued, and none of them waited for, when an instruction first waits for one of them; loads of another batch that
    are still under way count too, as in a loop that loads ahead. `before` and `after` are executed before and after
    `code`: a loop's other passes.
    """
    batches: list[list[int]] = []  # [in flight at the first wait or 0, loads]
    loads_of: dict[int, list[int]] = {}  # the batches of the loads that each scoreboard still counts
    before, stored, first, last = list(before), True, 0, None
    for i, line in enumerate([*before, *code, *after]):
        if i == len(before):
            first, stored = len(batches), True
        if i == len(before) + len(code):
            last, stored = len(batches), True
        in_flight = sum(map(len, loads_of.values()))
        for board in line.waits | _waits_by_depth(line, loads_of):
            for batch in loads_of.pop(board, []):
                batches[batch][0] = batches[batch][0] or in_flight
        if line.is_wide_load:
            if stored:
                batches.append([0, 0])
                stored = False
            batches[-1][1] += 1
            loads_of.setdefault(line.write_scoreboard, []).append(len(batches) - 1)
        elif line.is_wide_store:
            stored = True
    waited_for = [tuple(batch) for batch in batches[first:last] if batch[0]]
    return min(waited_for, key=lambda batch: batch[0] / batch[1], default=(0, 0))


def _waits_by_depth(line: Instruction, loads_of: dict[int, list[int]]) -> set[int]:
    """The scoreboard that DEPBAR waits for: until it counts no more than a number."""
    depth = re.match(r"SB(\d), (0x[0-9a-f]+)", line.operands) if line.name == "DEPBAR" else None
    if depth and len(loads_of.get(int(depth[1]), [])) > int(depth[2], 16):
        return {int(depth[1])}
    return set()
