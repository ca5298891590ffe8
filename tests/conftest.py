"""What holds for every test: strict promotion of dtypes and ranks. (pyproject.toml turns warnings into errors.)"""

import ctypes
import os
from importlib.metadata import version
from pathlib import Path

# The tests compile thousands of small programs and run each once, and three quarters of their time is XLA's. Machine
# code without LLVM's optimizations takes a quarter less in all, without its expensive passes a twentieth less again,
# and fusions by the older emitters, which need no MLIR, two fifths less (41 -> 24 s of CPU for experiments.cold_start):
# jaxlib had these before 0.11, and later ones end the process at a flag they do not know. XLA's own passes (fusion,
# layout, algebra) are those users get. An XLA_FLAGS of yours wins.
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
jax.config.update("jax_num_cpu_devices", 3)  # for the tests that spread rows over devices; all others use the first
hypothesis.settings.register_profile("jaxrec", deadline=None)  # an example that compiles takes its time
hypothesis.settings.load_profile("jaxrec")

# The test processes compile the same small programs over and over, and read again what either has compiled, in this run
# or an earlier one. The keys know versions and flags; an entry that the other process has half written is a miss.
jax.config.update("jax_compilation_cache_dir", str(Path(__file__).parents[1] / ".pytest_cache" / "jax"))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


# Doctests cannot carry a marker: of these modules, and of all experiments, they compile for ten seconds and more.
SLOW_DOCTESTS = {"jaxrec.solvers._als.dense_sweep", "jaxrec.bayes._gibbs", "jaxrec.bayes.new_user"}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if isinstance(item, pytest.DoctestItem) and (
            item.name in SLOW_DOCTESTS or item.name.startswith("experiments.")
        ):
            item.add_marker("slow")


def pytest_runtest_setup(item: pytest.Item) -> None:
    """What a machine with one GPU cannot show is skipped there, by markers; on a CPU nothing is."""
    if item.get_closest_marker("devices") and len(jax.devices()) < 3:
        pytest.skip(f"needs three devices, and there are {len(jax.devices())}")
    if item.get_closest_marker("cpu") and jax.default_backend() != "cpu":
        pytest.skip(f"is about the CPU, and this is {jax.default_backend()}")


compiled = ever_compiled = 0


def _count(event: str, duration: float, **_: object) -> None:
    global compiled, ever_compiled
    if event == "/jax/core/compile/backend_compile_duration":  # read from the cache, too
        compiled, ever_compiled = compiled + 1, ever_compiled + 1


jax.monitoring.register_event_duration_secs_listener(_count)


last_file = None


@pytest.fixture(autouse=True)
def room_for_programs(request):
    """Frees all programs when they are many, between files where it can. Each holds some ten memory mappings, and Linux
    gives a process 65,530: workers that kept all they had compiled crashed near the end, where JAX loads a program (at
    about 4,600 of them). Each also holds 1.5 MB, which glibc keeps unless it is asked for them.
    """
    global compiled, last_file
    if compiled > (1_000 if request.path != last_file else 3_000):  # one test adds up to 500
        jax.clear_caches()
        compiled = 0
        if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):
            trim(0)
    last_file = request.path


@pytest.fixture
def compilations():
    """A function that says how many programs were compiled so far: a second identical eager call compiles none."""
    return lambda: ever_compiled


@pytest.fixture
def x64():
    """float64, for the tests that compare with the NumPy loops of reference.py; all others run in float32."""
    with jax.enable_x64(True):
        yield


@pytest.fixture
def as_users_run():
    """Without the strict modes and shape annotations that only tests have: the errors are those a user sees."""
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
            yield
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture
def lowered_for(monkeypatch):
    """A function after which the library runs another platform's forms here: `lowered_for("cuda")`. All but the TPU's
    kernels are plain JAX, and must say the same.
    """

    def pretend(platform):
        choose = lambda *given, default=None, **forms: forms.get(platform, default)(*given)
        monkeypatch.setattr(jax.lax, "platform_dependent", choose)
        jax.clear_caches()

    yield pretend
    jax.clear_caches()


@pytest.fixture
def one_bucket(monkeypatch):
    """`data.rows` puts all rows of a side into one bucket. Each is compiled for itself, and what experiments and
    benchmarks do is the same for one as for many."""
    from jaxrec import data

    rows = data.rows
    monkeypatch.setattr(data, "rows", lambda ratings, side, **_: rows(ratings, side, min_length=64))
