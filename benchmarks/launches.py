"""Counts the kernels that a compiled program launches, from its text: an estimate of a GPU's time without a GPU.

On a GPU a small kernel takes as long as its launch, some microseconds, whatever it computes, so a loop of small steps
takes the time of its launches. Instructions that become kernels or library calls are counted; those in the body of a
loop once per trip. A loop whose number of trips the compiler does not know counts as one trip, and is reported.

>>> text = '''
... %body (x: f32[]) -> f32[] {
...   ROOT %add.1 = f32[] fusion(%x), kind=kLoop, calls=%f
... }
... ENTRY %main (x: f32[]) -> f32[] {
...   %y = f32[] while(%x), condition=%c, body=%body, backend_config={"known_trip_count":{"n":"12"}}
...   ROOT %z = f32[] custom-call(%y), custom_call_target="cusolver_potrf_ffi"
... }'''
>>> count(text)
Launches(kernels=13, trips=12, unknown=0)
"""

import re
from typing import NamedTuple

__all__ = ["Launches", "count"]

# Instructions that launch no kernel of their own.
FREE = {
    *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "call", "conditional", "after-all"),
    *("partition-id", "replica-id", "opt-barrier", "async-start", "async-done", "async-update"),
}
# Instructions whose called computations are part of their own kernel.
ONE = {"fusion", "reduce", "reduce-window", "scatter", "select-and-scatter", "sort", "map", "all-reduce"}


class Launches(NamedTuple):
    """Counts for one run of a program.

    Attributes:
        kernels: launches of kernels and library calls.
        trips: trips of all counted loops.
        unknown: loops whose number of trips the compiler does not know.
    """

    kernels: int
    trips: int
    unknown: int


def count(text: str) -> Launches:
    """Counts the launches in a compiled module's text, `compiled.as_text()`.

    A loop of n trips adds n * (kernels of its body) kernels and n * (1 + trips of its body) trips; of the branches of a
    conditional the largest counts.
    """
    bodies: dict[str, list[str]] = {}
    entry, lines = "", []
    for line in text.splitlines():
        if head := re.match(r"(ENTRY )?%?([\w.-]+) \(.*\{$", line):
            lines = bodies.setdefault(head[2], [])
            entry = head[2] if head[1] else entry
        elif " = " in line:
            lines.append(line)

    def computation(name: str) -> Launches:
        total = Launches(0, 0, 0)
        for line in bodies.get(name, []):
            if not (match := re.search(r" = .*? ([a-z][a-z-]*)\(", line)):
                continue
            opcode = match[1]
            kernels = int(opcode not in FREE)
            if opcode == "while":
                known = re.search(r'"known_trip_count":\{"n":"(\d+)"', line)
                trips = int(known[1]) if known else 1
                body = computation(re.search(r"body=%?([\w.-]+)", line)[1])  # type: ignore[index]
                total = _sum(
                    total, Launches(trips * body.kernels, trips * (1 + body.trips), body.unknown + (not known))
                )
            elif opcode == "conditional":
                branches = re.findall(r"(?:true|false)_computation=%?([\w.-]+)", line)
                if several := re.search(r"branch_computations=\{(.*?)\}", line):
                    branches = [branch.strip(" %") for branch in several[1].split(",")]
                total = _sum(total, max(map(computation, branches)))
            else:
                called = re.findall(r"(?:to_apply|calls|called_computation)=%?([\w.-]+)", line)
                inner = [computation(callee) for callee in called] if opcode in ("call", "async-start") else []
                total = _sum(total, Launches(kernels, 0, 0), *inner)
        return total

    return computation(entry)


def _sum(*parts: Launches) -> Launches:
    return Launches(*(sum(counts) for counts in zip(*parts, strict=True)))
