"""Settings and fixtures of all tests: strict promotion of dtypes and ranks. (pyproject.toml makes warnings errors.)"""

import ctypes
import os
from importlib.metadata import version
from pathlib import Path

# The tests compile thousands of small programs and run each once; three quarters of their time is compilation by XLA.
# Without LLVM's optimizations the tests take a quarter less time, without its expensive passes another twentieth less,
# and with the older fusion emitters, which need no MLIR, two fifths less (experiments.cold_start: 24 s of CPU, not 41).
# jaxlib has the older emitters before 0.11; later versions end the process at an unknown flag. The passes of XLA itself
# (fusion, layout, algebra) are those that users get. XLA_FLAGS in the environment take precedence.
os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
    + (" --xla_cpu_use_fusion_emitters=false" if tuple(map(int, version("jaxlib").split(".")[:2])) < (0, 11) else ""),
)

import hypothesis
import jax
import jaxtyping
import pytest

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_num_cpu_devices", 3)  # tests/solvers/test_devices.py uses three, all others the first
hypothesis.settings.register_profile("jaxrec", deadline=None)  # an example that compiles a program can be slow
hypothesis.settings.load_profile("jaxrec")

# The test processes need the same small programs again and again, so they share a cache of compiled programs, which is
# kept for later runs. Its keys include versions and flags; an entry that another process has half written is a miss.
jax.config.update("jax_compilation_cache_dir", str(Path(__file__).parents[1] / ".pytest_cache" / "jax"))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


# Doctests cannot have a marker. Those of these modules and of all experiments compile for some seconds.
SLOW_DOCTESTS = {
    "jaxrec.bayes._gibbs",
    "jaxrec.bayes.new_user",
    "jaxrec.models.gru",
    "jaxrec.models.hybrid",
    "jaxrec.models.sequence_scorer",
    "jaxrec.solvers._als.dense_sweep",
    "jaxrec.training.next_item",
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if isinstance(item, pytest.DoctestItem) and (
            item.name in SLOW_DOCTESTS or item.name.startswith("experiments.")
        ):
            item.add_marker("slow")


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skips tests that need three devices or a CPU, by their markers; on a CPU nothing is skipped."""
    if item.get_closest_marker("devices") and len(jax.devices()) < 3:
        pytest.skip(f"needs three devices, and there are {len(jax.devices())}")
    if item.get_closest_marker("cpu") and jax.default_backend() != "cpu":
        pytest.skip(f"tests the CPU's programs, and this is {jax.default_backend()}")


compiled = ever_compiled = 0


def _count(event: str, duration: float, **_: object) -> None:
    global compiled, ever_compiled
    if event == "/jax/core/compile/backend_compile_duration":  # also for a program that is read from the cache
        compiled, ever_compiled = compiled + 1, ever_compiled + 1


jax.monitoring.register_event_duration_secs_listener(_count)


last_file = None


@pytest.fixture(autouse=True)
def room_for_programs(request):
    """Frees the compiled programs when there are many of them, if possible between two files.

    Each program holds about ten memory mappings, and Linux allows a process 65,530: processes that kept all programs
    crashed after about 4,600 of them. Each also holds 1.5 MB, which glibc returns only when `malloc_trim` is called.
    """
    global compiled, last_file
    if compiled > (1_000 if request.path != last_file else 3_000):  # one test compiles up to 500
        jax.clear_caches()
        compiled = 0
        if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):
            trim(0)
    last_file = request.path


@pytest.fixture
def compilations():
    """A function that returns how many programs were compiled so far."""
    return lambda: ever_compiled


@pytest.fixture
def x64():
    """Enables float64, for tests that compare with the NumPy loops of reference.py; other tests run in float32."""
    with jax.enable_x64(True):
        yield


@pytest.fixture
def as_users_run():
    """Disables the strict modes and shape checks that only tests have, so that errors are those that users see."""
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
            yield
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture
def lowered_for(monkeypatch):
    """A function that makes the library use the forms of another platform, as in `lowered_for("cuda")`.

    All forms but the TPU's kernels are plain JAX and run on any platform, where they must give the same results.
    """

    def use_forms_of(platform):
        choose = lambda *args, default=None, **implementations: implementations.get(platform, default)(*args)
        monkeypatch.setattr(jax.lax, "platform_dependent", choose)
        jax.clear_caches()

    yield use_forms_of
    jax.clear_caches()


@pytest.fixture
def one_bucket(monkeypatch):
    """Makes `data.rows` put all rows of a side into one bucket, because every bucket is compiled separately.

    Experiments and benchmarks do the same for one bucket as for many.
    """
    from jaxrec import data

    rows = data.rows
    monkeypatch.setattr(data, "rows", lambda ratings, side, **_: rows(ratings, side, min_length=64))
