"""What several tests share: real data where it is there, a store, and the command line as a user runs it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import settings

from factory.store import Store

# `make test` tries the same examples everywhere, so that what lands does not hang on luck; to look for new ones:
# pytest --hypothesis-profile=default
settings.register_profile("steady", derandomize=True)
settings.load_profile("steady")

ROOT = Path(__file__).parent.parent
SHARED = Path(os.environ.get("FACTORY_SHARED", ROOT.parent / "shared"))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "test.duckdb")


@pytest.fixture
def shared() -> Path:
    """The folder of real public data; the test is skipped where it is absent."""
    if not (SHARED / "data").is_dir():
        pytest.skip("no shared data: set FACTORY_SHARED to its folder")
    return SHARED / "data"


def factory(*args: str, cwd: Path, **env: str) -> subprocess.CompletedProcess[str]:
    """Run the command line in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "factory.cli", *args],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=240,
        env=os.environ | {"OMP_NUM_THREADS": "1"} | env,
    )
