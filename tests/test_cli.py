"""The commands as a user gives them, one after the other, on one store."""

import csv
import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from factory.cli import main
from tests.conftest import factory


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with seeds, answers by a scripted engine, and two filters' verdicts."""
    folder = tmp_path_factory.mktemp("cli")
    rows = [{"instruction": f"Name {n} rivers.", "input": "", "output": "Rhine"} for n in ("two", "TWO", "three")]
    rows.append({"instruction": "说出一条河流的名字。", "input": "", "output": "长江"})
    (folder / "seeds.jsonl").write_text("\n".join(json.dumps(r, ensure_ascii=False) for r in rows))
    for command in (
        ["import", "seeds.jsonl", "--into", "seeds"],
        ["filter", "exact", "--on", "seeds"],
        ["generate", "respond", "--from", "seeds", "--into", "answers", "--engine", "strong=scripted",
         "--with", "engine=strong", "--with", "n=2"],
        ["filter", "denoise", "--on", "answers"],
    ):  # fmt: skip
        done = factory(*command, cwd=folder)
        assert done.returncode == 0, done.stderr
    return folder


def _run(folder: Path, *args: str) -> Result:
    store = [] if args[0] == "steps" else ["--store", str(folder / "factory.duckdb")]
    return CliRunner().invoke(main, [*args, *store])


def test_sql_prints_tables_json_and_csv(folder: Path) -> None:
    query = "SELECT dataset, count(*) AS n FROM kept_prompts GROUP BY ALL ORDER BY n"
    assert "answers" in _run(folder, "sql", query).output
    found = [json.loads(line) for line in _run(folder, "sql", query, "--json").output.splitlines()]
    assert sorted(found, key=str) == [
        {"dataset": "answers", "n": 3}, {"dataset": "seeds", "n": 3}
    ]  # fmt: skip
    rows = list(csv.reader(_run(folder, "sql", query, "--csv").output.splitlines()))
    assert rows[0] == ["dataset", "n"]
    assert dict(rows[1:]) == {"seeds": "3", "answers": "3"}, "the duplicate was not answered"


def test_show_tells_a_records_whole_life(folder: Path) -> None:
    query = "SELECT record_id FROM drops WHERE reason = 'language_mismatch' LIMIT 1"
    record = json.loads(_run(folder, "sql", query, "--json").output)["record_id"]
    told = _run(folder, "show", record[:12]).output
    for part in (
        "in answers, by scripted",
        "raw reply of call",
        "说出一条河流的名字。",
        "denoise on answers: dropped: language_mismatch",
        "from:",
    ):
        assert part in told
    query = "SELECT record_id FROM drops WHERE filter = 'exact'"
    dropped = json.loads(_run(folder, "sql", query, "--json").output)["record_id"]
    assert "exact on seeds: dropped: duplicate" in _run(folder, "show", dropped).output


def test_show_of_nothing_says_how_to_find_one(folder: Path) -> None:
    done = factory("show", "zzz", cwd=folder)
    assert done.returncode == 2
    assert "no one record 'zzz'; look one up" in done.stderr


def test_audits_exit_with_one_when_one_finds_violations(folder: Path) -> None:
    good = _run(folder, "audit", "no_orphans", "calls_verified")
    assert good.exit_code == 0
    assert "ok    no_orphans" in good.output
    (folder / "mine.sql").write_text("-- Nothing is about rivers.\nSELECT prompt FROM kept_prompts")
    bad = _run(folder, "audit", str(folder / "mine.sql"))
    assert bad.exit_code == 1
    assert "FAIL  mine: Nothing is about rivers. 6 violations" in bad.output


def test_export_writes_what_the_consumer_reads(folder: Path) -> None:
    done = factory("export", "answers", "--to", "out", "--for", "alpaca", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert (folder / "out" / "README.md").read_text().startswith("---\n")
    assert "dataset_info.json" in {p.name for p in (folder / "out").iterdir()}
    empty = factory("export", "nothing", "--to", "out2", cwd=folder)
    assert empty.returncode == 2
    assert "no sft rows in 'nothing'" in empty.stderr


def test_steps_lists_every_step_and_its_options() -> None:
    output = CliRunner().invoke(main, ["steps", "--json"]).output
    listed = {json.loads(line)["step"] for line in output.splitlines()}
    assert {"self_instruct", "respond", "exact", "minhash", "denoise", "sft", "mini", "vllm", "openai"} <= listed
    options = CliRunner().invoke(main, ["steps", "self_instruct", "--json"]).output
    assert {"option": "accept", "type": "int", "default": "100"}.items() <= json.loads(options.splitlines()[1]).items()
    missing = factory("steps", "nothing", cwd=Path())
    assert missing.returncode == 2


def test_check_estimates_and_spends_nothing(tmp_path: Path) -> None:
    done = factory("check", "mini.yaml", "--store", "none.duckdb", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "78 prompts" in done.stdout
    assert "Nothing was spent" in done.stdout
    assert not (tmp_path / "none.duckdb").exists()


def test_eval_measures_engines(tmp_path: Path) -> None:
    done = factory(
        "eval", "mini", "--engine", "weak=transformers:mini-weak", "--with", "tasks=26", "--with", "unsafe=4",
        "--with", "lookalikes=4", "--store", "e.duckdb", cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "exact_match" in done.stdout


def test_doctor_looks_at_the_environment(folder: Path) -> None:
    output = _run(folder, "doctor").output
    assert "duckdb" in output
    assert "prompts" in output


def test_data_goes_to_stdout_and_progress_to_stderr(folder: Path) -> None:
    done = factory("sql", "SELECT 1 AS one", "--json", cwd=folder)
    assert (done.stdout, done.stderr) == ('{"one": 1}\n', "")
    done = factory("import", "seeds.jsonl", "--into", "again", cwd=folder)
    assert done.stdout == ""
    assert "again: 4 prompts, 4 completions" in done.stderr
