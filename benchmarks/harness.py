"""Shared by all benchmarks: a fresh process per measurement, warm timings, compile seconds, memory."""

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

from jaxrec.data.layouts import free_memory

# By default a JAX process takes three quarters of the GPU's memory, and keeps it while it waits for another process.
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
    """Runs `python -m MODULE --cell JSON` and returns its last line, parsed; or {'failed': why}.

    If the reason is neither time nor memory (a wrong answer or an exception), 'wrong' is set as well.

    Each cell needs its own process because the peak resident size never decreases, and because the kernel kills a
    process that takes too much memory. In it every core is a JAX device: rows made by
    `data.rows(..., devices=jax.devices())` use all of them, and everything else runs on the first device, with the
    threads of all cores, as usual.
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
    lines = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
    return {"failed": lines[-1][:300], "wrong": True}


def serve(measure: Callable[[dict[str, Any]], dict[str, Any]]) -> bool:
    """In a process started by `in_fresh_process`, measures its cell, prints the answer and returns True."""
    if "--cell" not in sys.argv:
        return False
    print(json.dumps(measure(json.loads(sys.argv[sys.argv.index("--cell") + 1])), allow_nan=False))
    return True


def compile_and_weigh(function: Callable[..., Any], *arguments: Any) -> tuple[Any, dict[str, float]]:
    """(the compiled function, its compile seconds and its bytes by the compiler's analysis)."""
    start = time.perf_counter()
    compiled = jax.jit(function).lower(*arguments).compile()
    compile_seconds = time.perf_counter() - start
    memory: Any = compiled.memory_analysis()
    return compiled, {
        "compile_seconds": round(compile_seconds, 3),
        "temporary_bytes": memory.temp_size_in_bytes,
        "argument_bytes": memory.argument_size_in_bytes,
        "output_bytes": memory.output_size_in_bytes,
    }


def fits(needed: float) -> str | None:
    """None if this many bytes are free, else a message with the needed and the free bytes."""
    free = free_memory()
    return None if needed < 0.95 * free else f"does not fit: {needed / 1e9:.1f} GB needed, {free / 1e9:.1f} GB free"


def seconds(function: Callable[..., Any], *arguments: Any, repeats: int) -> dict[str, float]:
    """Median, lowest and highest seconds of a compiled function, results awaited; the first run is not counted.

    There are at least `repeats` runs, and more until half a second has passed, since short times vary more.
    """
    jax.block_until_ready(function(*arguments))
    times: list[float] = []
    while len(times) < repeats or (sum(times) < 0.5 and len(times) < 1000):
        start = time.perf_counter()
        jax.block_until_ready(function(*arguments))
        times.append(time.perf_counter() - start)
    return {"seconds": statistics.median(times), "fastest": min(times), "slowest": max(times)}


def peak_resident() -> int:
    """Peak resident bytes of this process so far.

    Not `ru_maxrss` on Linux, which includes the memory of the parent at the fork.
    """
    status = Path("/proc/self/status")
    if status.exists():
        return int(status.read_text().split("VmHWM:")[1].split()[0]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
