"""How many kernels a compiled program launches, read off its text: where no device is, what a GPU's time is about.

On a GPU a small kernel takes as long as its launch, some microseconds, whatever it computes: a loop of small steps is
one of launches. Counted are the instructions that become kernels or library calls, those of a loop's body as often as
it runs; a loop whose trips the compiler does not know counts once, and is named.

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

# What becomes no kernel of its own.
FREE = {
    *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "call", "conditional", "after-all"),
    *("partition-id", "replica-id", "opt-barrier", "async-start", "async-done", "async-update"),
}
# Their other computations are part of the one kernel.
ONE = {"fusion", "reduce", "reduce-window", "scatter", "select-and-scatter", "sort", "map", "all-reduce"}


class Launches(NamedTuple):
    """Of one run of a program.

    Attributes:
        kernels: launches of kernels and library calls.
        trips: of all loops that are counted.
        unknown: loops whose trips the compiler does not know.
    """

    kernels: int
    trips: int
    unknown: int


def count(text: str) -> Launches:
    """Of a compiled module's text: `compiled.as_text()`."""
    bodies: dict[str, list[str]] = {}
    entry, lines = "", []
    for line in text.splitlines():
        if head := re.match(r"(ENTRY )?%?([\w.-]+) \(.*\{$", line):
            lines = bodies.setdefault(head[2], [])
            entry = head[2] if head[1] else entry
        elif " = " in line:
            lines.append(line)

    def of(name: str) -> Launches:
        total = Launches(0, 0, 0)
        for line in bodies.get(name, []):
            if not (found := re.search(r" = .*? ([a-z][a-z-]*)\(", line)):
                continue
            opcode = found[1]
            kernels = int(opcode not in FREE)
            if opcode == "while":
                known = re.search(r'"known_trip_count":\{"n":"(\d+)"', line)
                times = int(known[1]) if known else 1
                body = of(re.search(r"body=%?([\w.-]+)", line)[1])  # type: ignore[index]
                total = _sum(
                    total, Launches(times * body.kernels, times * (1 + body.trips), body.unknown + (not known))
                )
            elif opcode == "conditional":
                branches = re.findall(r"(?:true|false)_computation=%?([\w.-]+)", line)
                if several := re.search(r"branch_computations=\{(.*?)\}", line):
                    branches = [each.strip(" %") for each in several[1].split(",")]
                total = _sum(total, max(map(of, branches)))
            else:
                called = re.findall(r"(?:to_apply|calls|called_computation)=%?([\w.-]+)", line)
                inner = [of(each) for each in called] if opcode in ("call", "async-start") else []
                total = _sum(total, Launches(kernels, 0, 0), *inner)
        return total

    return of(entry)


def _sum(*parts: Launches) -> Launches:
    return Launches(*(sum(each) for each in zip(*parts, strict=True)))
