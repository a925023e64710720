"""What the documents say is true: commands exist, queries run, every step and option is documented."""

import re
import shlex
from pathlib import Path

import pytest
from click.testing import CliRunner

from factory.cli import main
from factory.query import read_only
from factory.records import Completion, Judgement, Metric, Prompt, Verdict, user
from factory.spec import load_spec
from factory.steps import FOLDERS, step_help, step_names
from factory.store import Store

ROOT = Path(__file__).parent.parent
DOCS = ("README.md", "README.zh.md", "CONTRIBUTING.md")
STEPS = [(kind, name) for kind in FOLDERS for name in step_names(kind)]


def _blocks(name: str, language: str) -> list[str]:
    text = (ROOT / name).read_text(encoding="utf-8")
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


@pytest.fixture
def filled(store: Store) -> Store:
    prompt = Prompt(user("q"))
    answer = Completion(prompt.id, "a", "m", "student")
    judged = Judgement(prompt.id, answer.id, "mini", "rule", score=0.0, rationale="wrong")
    store.append([prompt, answer, judged, Verdict(prompt.id, "f", True), Metric("yield/g/kept", 1)], "train")
    return store


@pytest.mark.parametrize("name", DOCS)
def test_every_query_in_the_documents_runs(name: str, filled: Store) -> None:
    commands = [
        line for block in _blocks(name, "bash") for line in block.splitlines() if line.startswith("factory sql")
    ]
    for line in commands:
        read_only(filled, shlex.split(line)[2], 10)
    assert len(commands) == (0 if name == "CONTRIBUTING.md" else 5)


def test_every_command_in_the_documents_exists_and_has_help() -> None:
    known = set(main.commands)
    for name in DOCS:
        for command in re.findall(r"`?factory ([a-z]+)", (ROOT / name).read_text(encoding="utf-8")):
            assert command in known or command in {"mini"}, f"{name}: factory {command}"
    for name in known:
        result = CliRunner().invoke(main, [name, "--help"])
        assert result.exit_code == 0
        assert len(result.output.splitlines()) > 3


def test_every_make_target_in_the_documents_exists() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert {"setup", "demo", "test", "lint", "bench", "vllm-cpu"} <= targets
    for name in DOCS:
        assert set(re.findall(r"make ([a-z-]+)", " ".join(_blocks(name, "bash")))) <= targets


@pytest.mark.parametrize("name", ["README.md", "README.zh.md"])
def test_the_example_specs_are_valid(name: str, tmp_path: Path) -> None:
    whole, engines = _blocks(name, "yaml")
    (tmp_path / "one.yaml").write_text(whole)
    assert len(load_spec(tmp_path / "one.yaml").stages) == 8
    stages = whole[whole.index("stages:") :]
    (tmp_path / "two.yaml").write_text(f"name: two\n{engines}\n{stages}")
    assert load_spec(tmp_path / "two.yaml").budget.usd == 20


@pytest.mark.parametrize("path", sorted((ROOT / "specs").glob("*.yaml")), ids=lambda p: p.stem)
def test_every_packaged_spec_is_valid(path: Path) -> None:
    spec = load_spec(path)
    assert spec.stages
    assert spec.name == path.stem


@pytest.mark.parametrize(("kind", "name"), STEPS, ids=lambda s: str(s))
def test_every_step_and_every_option_is_documented(kind: str, name: str) -> None:
    what, options = step_help(kind, name)
    assert len(what) > 15
    assert options
    for option in options:
        assert len(option.help) > 10, f"{name}.{option.name} has no docstring"


def test_the_step_in_contributing_works(tmp_path: Path) -> None:
    import polars as pl

    scope: dict[str, object] = {}
    source = tmp_path / "shout.py"
    source.write_text(_blocks("CONTRIBUTING.md", "python")[0])
    exec(compile(source.read_text(), str(source), "exec"), scope)
    frame = pl.DataFrame({"id": ["a", "b", "c"], "text": ["HELLO THERE", "hello there", "你好"]})
    judged = scope["Shout"]().screen(frame)  # type: ignore[operator]
    assert judged["reason"].to_list() == ["shouting", "", ""]


def test_no_document_names_a_machine_or_a_secret() -> None:
    for path in [
        *ROOT.glob("*.md"),
        *(ROOT / "docs").glob("*.md"),
        *ROOT.glob("*.txt"),
        *(ROOT / "specs").rglob("*.yaml"),
    ]:
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"(^|[\s\"'(=])/(home|root|tmp|work)/", text), path
