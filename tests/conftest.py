"""Shared fixtures. Tests run on 8 simulated CPU devices; set before jax is imported anywhere."""

import os
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
if "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = (os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8").strip()
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest  # noqa: E402

REPO = Path(__file__).resolve().parents[1]


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
