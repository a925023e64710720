"""The small judge on real pairs, by the command: what fits its window is measured, what does not is told."""

import json
from pathlib import Path
from typing import Any

from click.testing import CliRunner, Result

from factory.cli import main
from factory.store import Store

ROOT = Path(__file__).parent.parent


def asked(gold: Path, folder: Path) -> Result:
    options = {"templates": str(ROOT / "specs/templates/mini"), "judge_sampling": {"temperature": 0, "max_tokens": 48}}
    more = [f"--with={key}={json.dumps(value)}" for key, value in options.items()]
    args = ["judge", "mini-strong", "--gold", str(gold), "--limit", "4", "--json", *more]
    return CliRunner().invoke(main, [*args, "--store", str(folder / "s.duckdb")])


def measured(gold: Path, folder: Path) -> dict[str, Any]:
    """The figures of the judge on four pairs, after a look at the rows behind them."""
    result = asked(gold, folder)
    assert result.exit_code == 0, result.output
    found, longest, random = (json.loads(line) for line in result.stdout.splitlines()[:3])
    assert [f["judge"] for f in (found, longest, random)] == ["mini-strong", "longest", "random"]
    told = Store(folder / "s.duckdb").rows("""SELECT count(*), count(*) FILTER (verdict = 'invalid'),
        count(DISTINCT prompt_id) FROM judgements WHERE judge_kind = 'model'""")
    assert (found["invalid"]["n"], found["invalid"]["value"] * 8) == told[0][:2]
    assert (found["accuracy"]["n"], longest["accuracy"]["n"], told[0][2]) == (4, 4, 4)
    return dict(found)


def test_it_is_measured_on_the_pairs_of_pandalm(shared: Path, tmp_path: Path) -> None:
    found = measured(shared / "pandalm_testset.json", tmp_path)
    assert found["invalid"]["n"] == 8, "every pair in both orders"
    assert found["invalid"]["value"] < 1, "some of what it says can be read"


def test_of_judgebench_it_is_measured_on_what_fits_and_the_rest_is_told(shared: Path, tmp_path: Path) -> None:
    lines = (shared / "judgebench_gpt4o.jsonl").read_text(encoding="utf-8").splitlines()
    short, long = tmp_path / "short.jsonl", tmp_path / "long.jsonl"
    lines.sort(key=lambda line: sum(len(json.loads(line)[key]) for key in ("question", "response_A", "response_B")))
    short.write_text("\n".join(lines[:4]), encoding="utf-8")
    long.write_text("\n".join(lines[-4:]), encoding="utf-8")
    assert measured(short, tmp_path)["invalid"]["n"] == 8
    (tmp_path / "long").mkdir()
    result = asked(long, tmp_path / "long")
    assert result.exit_code != 0
    assert "gave no opinion on any of 4 pairs; see FROM drops" in result.output
    store = Store(tmp_path / "long/s.duckdb")
    assert store.rows("SELECT reason, count(*) FROM drops GROUP BY ALL") == [("engine_error", 8)]
    assert store.rows("SELECT bool_and(error LIKE '%pass the 2048 it holds') FROM calls") == [(True,)]
