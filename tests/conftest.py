"""Shared fixtures. Tests run on 8 simulated CPU devices; set before jax is imported anywhere."""

import functools
import gc
import importlib.util
import mmap
import os
import sys
from pathlib import Path


def xla_knows(flag: str) -> bool:
    """Whether the installed XLA has a flag; it ends the process at one that it does not know.

    A flag's name is a string of its own there. In other strings stand names of flags that are no more as well.
    """
    folder = Path(importlib.util.find_spec("jaxlib").submodule_search_locations[0])
    library = max(folder.glob("*.so"), key=lambda path: path.stat().st_size)
    with library.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return content.find(b"\0" + flag.encode() + b"\0") >= 0


os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Workers of xdist have another sys.argv and this environment.
if "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
    flags = [os.environ.get("XLA_FLAGS", ""), "--xla_force_host_platform_device_count=8"]
    if "--optimised" not in sys.argv:
        # Programs run a few times here, and two thirds of a test are their compiling: machine code is made with less
        # care. The numbers of the program are the same to rounding; the quickstart's test compiles as users do.
        # (Level 1 halves the time of whole training runs and doubles that of the model's tests: the same in all.)
        # A module in one piece: the tests' programs are small, and each of the 32 pieces of a user's costs something.
        quick = (
            "xla_backend_optimization_level=0",
            "xla_cpu_use_fusion_emitters=false",
            "xla_cpu_parallel_codegen_split_count=1",
        )
        flags += [f"--{flag}" for flag in quick if xla_knows(flag.partition("=")[0])]
    os.environ["XLA_FLAGS"] = " ".join(flags).strip()
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

from collections import Counter  # noqa: E402
from collections.abc import Iterator  # noqa: E402

import hypothesis  # noqa: E402
import pytest  # noqa: E402

REPO = Path(__file__).resolve().parents[1]
CASES = 2  # of a test with many, that --fast runs
MEMORY = 6 * 2**30  # bytes that a worker may hold at its fullest
# Files that take about half a minute and more, longest first: begun last, one would be waited for by all other workers.
LONG_FILES = (
    "commands/test_quickstart.py",
    "commands/test_plan.py",
    "commands/test_train_bucket.py",
    "commands/test_train_resume.py",
    "commands/test_train_meshes.py",
    "data_gen/corpus/test_bucket_build.py",
    "scripts/test_pod.py",
    "commands/test_train_lora.py",
    "training/test_memory.py",
    "inference/test_engine_scoring.py",
    "commands/test_train.py",
    "commands/test_train_evaluation.py",
    "training/test_adapter_step.py",
    "model/test_quantization.py",
    "commands/test_train_hosts.py",
    "data_gen/corpus/test_corpus_build.py",
    "model/test_lora.py",
    "planning/test_plan_lora.py",
    "planning/test_search.py",
    "evaluation/test_extraction.py",
    "data/test_sources.py",
    "commands/test_bench_gpu.py",
    "commands/test_demo_lora.py",
    "commands/test_bucket_places.py",
    "hf/test_foreign_models.py",
    "hf/test_load_base.py",
    "training/test_optim.py",
    "llm_api/test_runs_disturbed.py",
    "data/test_prepare.py",
    "commands/test_three_stages.py",
    "hf/test_merge.py",
    "commands/test_bench_speed.py",
    "hf/test_hf_write.py",
    "model/test_attention_kernels.py",
    "parallel/test_xla_flags.py",
    "parallel/test_two_step_gather.py",
)


@functools.cache
def slow_tests() -> set[str]:
    """Lines of tests/slow.txt: "path::name" of a test, or the path of a file."""
    lines = (REPO / "tests" / "slow.txt").read_text(encoding="utf-8").splitlines()
    return {line for line in lines if line and not line.startswith("#")}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--fast", action="store_true", help="without slow tests, and two cases of a test with many")
    parser.addoption("--optimised", action="store_true", help="compile programs as users do: slower by a third")


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Workers of `-n auto`: one more than cores, with --fast one a core, as far as memory goes; none for files or -k.

    A seventh of the suite is waiting, for processes and fake servers: the one more uses the time of those that wait.
    Few tests start sooner without.
    """
    if config.option.keyword or any(".py" in arg for arg in config.invocation_params.args):
        return 0
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    fits = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // MEMORY
    workers = min(cores if config.getoption("--fast") else cores + 1, fits)
    return workers if workers > 1 else 0


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "slow: stands in tests/slow.txt; scripts/test.sh --fast leaves it out")
    if config.getoption("--fast"):
        hypothesis.settings.register_profile("fast", max_examples=10, deadline=None)
        hypothesis.settings.load_profile("fast")


@pytest.hookimpl(wrapper=True)
def pytest_collection(session: pytest.Session) -> Iterator[object]:
    """Without Python's collector, which finds nothing in modules and test cases; nor are they gone through later.

    Thresholds are far above Python's: tracing a program makes many objects that all live until it is compiled, and
    going through all objects of a worker takes two seconds.
    """
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.set_threshold(20_000, 20, 20)
        gc.enable()


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """With --fast, files of tests/slow.txt are not even imported."""
    ours = collection_path.is_relative_to(REPO) and collection_path.relative_to(REPO).as_posix()
    return True if config.getoption("--fast") and ours in slow_tests() else None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Long files first. Marks what tests/slow.txt names; with --fast, leaves it out, and of every test all but CASES
    of its cases."""
    items.sort(key=place_of_file)
    slow, cases = slow_tests(), Counter()
    for item in items:
        path = item.path.relative_to(REPO).as_posix()
        if path in slow or f"{path}::{name_of(item)[1]}" in slow:
            item.add_marker(pytest.mark.slow)
    if not config.getoption("--fast"):
        return
    total = Counter(name_of(item) for item in items)
    kept, left = [], []
    for item in items:
        name = name_of(item)
        # The first of them and the last; more of them would be as far apart as can be.
        chosen = {round(i * (total[name] - 1) / (CASES - 1)) for i in range(CASES)}
        is_chosen = cases[name] in chosen and not item.get_closest_marker("slow")
        cases[name] += 1
        (kept if is_chosen else left).append(item)
    items[:] = kept
    config.hook.pytest_deselected(items=left)


def place_of_file(item: pytest.Item) -> int:
    """Of its file in LONG_FILES; the others keep their order behind."""
    path = item.path.relative_to(REPO / "tests").as_posix()
    return LONG_FILES.index(path) if path in LONG_FILES else len(LONG_FILES)


def name_of(item: pytest.Item) -> tuple[Path, str]:
    """The test, whichever of its cases this is."""
    return item.path, getattr(item, "originalname", None) or item.name


@pytest.fixture(scope="session")
def repo() -> Path:
    """The repository root."""
    return REPO


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """Public data sets and the Llama-3 vocabulary in a folder beside the checkout; tests that need it skip without."""
    path = Path(os.environ.get("MMED_JAX_SHARED", REPO.parent / "shared"))
    if not path.is_dir():
        pytest.skip("no shared data folder beside the checkout (set MMED_JAX_SHARED)")
    return path


@pytest.fixture(scope="session")
def llama3_tokenizer_model(shared_dir: Path) -> Path:
    """Meta's tokenizer.model with the real 128,256-entry vocabulary."""
    path = shared_dir / "llama3_tokenizer" / "tokenizer.model"
    if not path.is_file():
        pytest.skip("no Llama-3 tokenizer.model in the shared folder")
    return path
