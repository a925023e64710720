"""An installed wheel works outside the clone: specs, seeds, audits, SQL, prompts and the models ship with it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel's content, as pip lays it out."""
    folder = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    build = [*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder), str(ROOT)]
    subprocess.run(build, check=True, capture_output=True)
    wheel = next(folder.glob("alignment_factory-*.whl"))
    target = folder / "site"
    subprocess.run([*pip, "install", "--no-deps", "--target", str(target), str(wheel)], check=True, capture_output=True)
    return target


def _python(installed: Path, cwd: Path, *args: str) -> subprocess.CompletedProcess[str]:
    env = os.environ | {"PYTHONPATH": str(installed), "OMP_NUM_THREADS": "1"}
    return subprocess.run([sys.executable, *args], cwd=cwd, env=env, capture_output=True, text=True, timeout=200)


def test_the_wheel_is_whole(installed: Path, tmp_path: Path) -> None:
    where = _python(installed, tmp_path, "-c", "import factory; print(factory.__file__)").stdout
    assert str(installed) in where
    shipped = (
        "specs/mini.yaml", "specs/seeds/mini.jsonl", "specs/audits/no_orphans.sql", "sql/views.sql",
        "specs/templates/mini/instructions.jinja", "mini/checkpoints/mini-weak/model.safetensors",
    )  # fmt: skip
    for name in shipped:
        assert (installed / "factory" / name).exists(), name
    assert (installed / "generators/prompts/self_instruct/instructions.zh.jinja").exists()


def test_the_packaged_spec_checks_and_runs_from_anywhere(installed: Path, tmp_path: Path) -> None:
    done = _python(installed, tmp_path, "-m", "factory.cli", "check", "specs/mini.yaml")
    assert done.returncode == 0, done.stderr
    assert "generate self_instruct" in done.stdout
    small = (installed / "factory/specs/mini.yaml").read_text()
    shorter = {
        "accept: 1600": "accept: 40",
        "accept: 200": "accept: 16",
        "num_train_epochs: 3": "max_steps: 4",
        "trained: student}": "trained: student}, tasks: 26, unsafe: 8, lookalikes: 8",
    }
    for full, less in shorter.items():
        assert full in small, full
        small = small.replace(full, less)
    (installed / "factory/specs/small.yaml").write_text(small)
    done = _python(installed, tmp_path, "-m", "factory.cli", "run", "small.yaml", "--store", "s.duckdb")
    assert done.returncode == 0, done.stderr
    assert "exact_match" in done.stdout
    assert "store: s.duckdb" in done.stdout
    audit = _python(
        installed, tmp_path, "-m", "factory.cli", "audit", "no_orphans", "calls_verified", "--store", "s.duckdb"
    )
    assert audit.returncode == 0, audit.stdout
