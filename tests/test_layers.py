"""The shape of the house: who may import whom, how long files are, and what a light command loads."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
HOUSES = ("factory", "generators", "filters", "trainers")
FILES = [p for house in HOUSES for p in sorted((ROOT / house).rglob("*.py"))]
# Steps rest on the values, the errors and the text tools alone.
STEPS_MAY = {
    "factory.records", "factory.errors", "factory.options", "factory.text", "factory.stats", "factory.memory",
    "factory.engines.base", "factory.rewards", "factory.scorers", "factory.refusals", "factory.answers",
    "factory.resources", "factory.pii", "factory.ifd",
}  # fmt: skip
# Each layer may import those to its right.
LAYERS = (
    ("factory.cli",),
    ("factory.report", "factory.judging", "factory.spread"),
    ("factory.run",),
    (
        "factory.flow",
        "factory.training",
        "factory.training_rows",
        "factory.audit",
        "factory.query",
        "factory.thresholds",
        "factory.engines.pool",
    ),
    ("factory.spec", "factory.evaluations", "factory.formats", "factory.conformance"),
    ("factory.steps", "factory.engines.journal"),
    ("factory.store_memory", "factory.rewards", "factory.scorers", "factory.ifd"),
    ("factory.store", "factory.engines", "factory.mini"),
    (
        "factory.diagnosis",
        "factory.memory",
        "factory.model_card",
        "factory.options",
        "factory.resources",
        "factory.sinks",
        "factory.stats",
        "factory.text",
        "factory.refusals",
        "factory.answers",
        "factory.pii",
    ),
    ("factory.records",),
    ("factory.errors",),
)


def _imports(path: Path) -> set[str]:
    found = set[str]()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {a.name for a in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            named = {f"{node.module}.{a.name}" for a in node.names}
            is_package = (ROOT / node.module.replace(".", "/")).is_dir()
            found |= named if is_package and node.module in HOUSES else {node.module}
    return {name for name in found if name.split(".")[0] in HOUSES}


def _layer(module: str) -> int:
    ranks = [
        (len(name), rank) for rank, names in enumerate(LAYERS) for name in names if f"{module}.".startswith(f"{name}.")
    ]
    return max(ranks)[1] if ranks else 0


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_run_one_way(path: Path) -> None:
    module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for name in _imports(path):
        if module.startswith("factory"):
            assert name.startswith("factory"), f"{module} reaches a step other than through load_step"
            assert _layer(name) >= _layer(module), f"{module} imports {name}, which stands above it"
        else:
            own_helper = name.startswith(f"{module.split('.')[0]}._")
            assert own_helper or name in STEPS_MAY, f"{module} imports {name}"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_files_stay_under_400_lines(path: Path) -> None:
    assert path.read_text().count("\n") <= 400


_UNSAFE = ("import pickle", "torch.load", "trust_remote_code=True", "yaml.unsafe", "weights_only=False")


@pytest.mark.parametrize("banned", _UNSAFE)
def test_nothing_is_loaded_from_pickles_or_trusted_blindly(banned: str) -> None:
    assert [str(p) for p in FILES if re.search(rf"^[^#\"]*\b{re.escape(banned)}", p.read_text(), re.MULTILINE)] == []


@pytest.mark.parametrize("command", [["--help"], ["sql", "--help"]])
def test_light_commands_load_nothing_heavy(command: list[str]) -> None:
    code = (
        "import sys; sys.argv = ['factory', *%r]\n"
        "from factory.cli import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "print([m for m in ('torch', 'transformers', 'datasets', 'vllm', 'polars', 'duckdb') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code % command], capture_output=True, text=True, check=True)
    assert done.stdout.strip().endswith("[]")


def test_sql_never_imports_torch(tmp_path: Path) -> None:
    code = """
import sys
from pathlib import Path
from factory.store import Store
from factory.records import Prompt, user
Store(Path('s.duckdb')).append([Prompt(user('x'))], 'd')
sys.argv = ['factory', 'sql', 'FROM prompts', '--store', 's.duckdb', '--json']
from factory.cli import main
try: main()
except SystemExit: pass
print('torch' in sys.modules or 'transformers' in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert done.stdout.strip().endswith("False")
