"""What every benchmark shares: a fresh process per measurement, warm timings, compile seconds, memory."""

import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import psutil

# A process that waits for another leaves it the GPU's memory, of which JAX takes three quarters by default.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

__all__ = ["compile_and_weigh", "fits", "in_fresh_process", "peak_resident", "seconds", "serve"]


def in_fresh_process(
    module: str,
    cell: dict[str, Any],
    *,
    timeout: float,
    python: str = sys.executable,
    env: dict[str, str] | None = None,
) -> dict[str, Any]:
    """What `python -m MODULE --cell JSON` prints as its last line, or {'failed': why}: one cell cannot harm the next.

    'wrong' is set beside 'failed' where it was neither time nor memory: an answer that is not right, or a mistake.

    A process of its own because a peak resident size never goes down, and because the kernel kills what takes too much.
    In it every core is a device to JAX: what `data.rows(..., devices=jax.devices())` spreads uses them all, and what is
    not spread runs on the first, with all cores' threads, as ever.
    """
    env = {"JAX_NUM_CPU_DEVICES": str(len(os.sched_getaffinity(0)))} | dict(os.environ if env is None else env)
    command = [python, "-m", module, "--cell", json.dumps(cell)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False, env=env)
    except FileNotFoundError:
        return {"failed": f"no {python}"}
    except subprocess.TimeoutExpired:
        return {"failed": f"not done after {timeout:.0f} s"}
    if done.returncode == 0:
        return json.loads(done.stdout.strip().splitlines()[-1])
    if done.returncode == -9:
        return {"failed": "killed: out of memory"}
    said = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
    return {"failed": said[-1][:300], "wrong": True}


def serve(measure: Callable[[dict[str, Any]], dict[str, Any]]) -> bool:
    """In a process started by `in_fresh_process`: measures its cell, prints the answer, returns True."""
    if "--cell" not in sys.argv:
        return False
    print(json.dumps(measure(json.loads(sys.argv[sys.argv.index("--cell") + 1])), allow_nan=False))
    return True


def compile_and_weigh(function: Callable[..., Any], *arguments: Any) -> tuple[Any, dict[str, float]]:
    """(the compiled function, its compile seconds and its bytes by the compiler's own analysis)."""
    start = time.perf_counter()
    compiled = jax.jit(function).lower(*arguments).compile()
    took = time.perf_counter() - start
    memory: Any = compiled.memory_analysis()
    return compiled, {
        "compile_seconds": round(took, 3),
        "temporary_bytes": memory.temp_size_in_bytes,
        "argument_bytes": memory.argument_size_in_bytes,
        "output_bytes": memory.output_size_in_bytes,
    }


def fits(needed: float) -> str | None:
    """None where so many more bytes are there, else a sentence that says what is missing."""
    there = psutil.virtual_memory().available
    return None if needed < 0.95 * there else f"does not fit: {needed / 1e9:.1f} GB needed, {there / 1e9:.1f} GB free"


def seconds(function: Callable[..., Any], *arguments: Any, repeats: int) -> dict[str, float]:
    """Median, lowest and highest seconds of a function that is compiled, results awaited; the first run is not counted.

    At least `repeats` runs, and as many as half a second takes: milliseconds need more of them.
    """
    jax.block_until_ready(function(*arguments))
    taken: list[float] = []
    while len(taken) < repeats or (sum(taken) < 0.5 and len(taken) < 1000):
        start = time.perf_counter()
        jax.block_until_ready(function(*arguments))
        taken.append(time.perf_counter() - start)
    return {"seconds": statistics.median(taken), "fastest": min(taken), "slowest": max(taken)}


def peak_resident() -> int:
    """The most bytes this process has held in memory so far.

    Not `ru_maxrss` on Linux: a process starts with what its parent held when it forked.
    """
    status = Path("/proc/self/status")
    if status.exists():
        return int(status.read_text().split("VmHWM:")[1].split()[0]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
