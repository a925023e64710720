"""What several tests share: real data where it is there, a store, and the command line as a user runs it."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
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


@pytest.fixture
def one_thread() -> Iterator[None]:
    """One torch thread: several gain nothing on small models, and tests run side by side."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


_AGAIN_AND_AGAIN = """
import sys
from pathlib import Path
import torch
torch.set_num_threads(1)
{first}
out = Path(sys.argv[1])
print("ready", flush=True)
while True:
    {again}
"""


def killed(first: str, again: str, out: Path, after: float) -> None:
    """Run the line `again`, which knows `out`, over and over in a process of its own, and kill that after a while."""
    process = subprocess.Popen(
        [sys.executable, "-c", _AGAIN_AND_AGAIN.format(first=first, again=again), str(out)],
        cwd=ROOT, stdout=subprocess.PIPE, env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    time.sleep(after)
    process.send_signal(signal.SIGKILL)
    process.wait()


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
