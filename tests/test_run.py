import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from random import Random

import pytest

from factory.errors import AuditError, BudgetError, EngineError
from factory.run import run
from factory.spec import load_spec
from factory.store import Store
from tests.specs_help import CONTENT, scripted_spec


def _content(store: Store) -> dict[str, list[tuple[object, ...]]]:
    return {table: store.rows(sql) for table, sql in CONTENT.items()}


def _quiet(line: str) -> None:
    """Progress is not of interest here."""


def test_a_spec_runs_from_seeds_to_answers_with_exactly_the_wanted_rows(tmp_path: Path, store: Store) -> None:
    run(load_spec(scripted_spec(tmp_path)), store, _quiet)
    assert store.rows("SELECT count(*) FROM prompts WHERE dataset = 'tasks'") == [(150,)]
    kept = store.rows("SELECT count(*) FROM kept_prompts WHERE dataset = 'tasks'")[0][0]
    answers = store.rows("SELECT count(*) FROM completions WHERE dataset = 'answers'")[0][0]
    assert 0 < kept < 150
    assert answers == 3 * kept, "only what the filters kept is answered"
    waterfall = dict(
        store.rows("SELECT measure, n FROM yield WHERE dataset = 'tasks' AND stage = 'self_instruct from seeds'")
    )
    assert (
        waterfall["asked"] >= waterfall["parsed"] >= waterfall["valid"] >= waterfall["novel"] >= waterfall["answered"]
    )
    assert waterfall["kept"] == 150
    lost = waterfall["valid"] - waterfall["novel"]
    assert store.rows("SELECT count(*) FROM drops WHERE reason = 'too_similar'") == [(lost,)]
    assert store.rows("SELECT status FROM runs") == [("finished",)]


def test_running_twice_asks_nothing_and_adds_nothing(tmp_path: Path, store: Store) -> None:
    spec = load_spec(scripted_spec(tmp_path))
    run(spec, store, _quiet)
    before = _content(store)
    said: list[str] = []
    run(spec, store, said.append)
    assert _content(store) == before
    assert all("skipped" in line for line in said if not line.startswith("  audit")), "only audits are run again"


def test_a_changed_stage_is_done_again_and_the_journal_answers_for_the_rest(tmp_path: Path, store: Store) -> None:
    path = scripted_spec(tmp_path)
    run(load_spec(path), store, _quiet)
    calls = store.rows("SELECT count(*) FROM calls")
    answered = store.rows("SELECT count(*) FROM completions WHERE dataset = 'answers'")[0][0]
    path.write_text(path.read_text().replace("threshold: 0.8", "threshold: 0.95"))
    said: list[str] = []
    run(load_spec(path), store, said.append)
    assert next(line for line in said if "skipped" not in line).strip().startswith("filter minhash")
    new = store.rows("SELECT count(*) FROM calls")[0][0] - calls[0][0]
    kept = store.rows("SELECT count(*) FROM kept_prompts WHERE dataset = 'tasks'")[0][0]
    assert new == 3 * kept - answered, "only prompts that were not answered before are asked"


def test_an_engine_that_dies_stops_the_run_and_the_next_run_goes_on(tmp_path: Path, store: Store) -> None:
    with pytest.raises(EngineError, match="died after 100"):
        run(load_spec(scripted_spec(tmp_path, die_after=100)), store, _quiet)
    assert store.rows("SELECT status FROM runs") == [("failed",)]
    answered = store.rows("SELECT count(*) FROM calls")[0][0]
    assert answered >= 100
    run(load_spec(scripted_spec(tmp_path)), store, _quiet)
    whole = Store(tmp_path / "whole.duckdb")
    run(load_spec(scripted_spec(tmp_path)), whole, _quiet)
    assert _content(store) == _content(whole)


def test_error_replies_and_truncated_ones_are_rows_with_reasons(tmp_path: Path, store: Store) -> None:
    run(load_spec(scripted_spec(tmp_path, error_every=7, truncate_every=5)), store, _quiet)
    reasons = dict(store.rows("SELECT reason, count(*) FROM drops GROUP BY ALL"))
    assert reasons["engine_error"] > 5
    assert reasons["truncated"] > 5
    asked = store.rows("SELECT measure, n FROM yield WHERE stage = 'respond from tasks' ORDER BY n DESC")
    assert asked[0][0] == "asked"
    assert asked[0][1] > asked[1][1]


def test_a_budget_stops_a_run_cleanly_and_a_larger_one_goes_on(tmp_path: Path, store: Store) -> None:
    path = scripted_spec(tmp_path)
    text = path.read_text()
    path.write_text(text + "budget: {calls: 120}\n")
    with pytest.raises(BudgetError, match="120 calls"):
        run(load_spec(path), store, _quiet)
    assert store.rows("SELECT count(*) FROM calls") == [(120,)]
    path.write_text(text)
    run(load_spec(path), store, _quiet)
    assert store.rows('SELECT count(*) - count(DISTINCT "key") FROM calls') == [(0,)]


def test_an_audit_with_violations_stops_the_run(tmp_path: Path, store: Store) -> None:
    path = scripted_spec(tmp_path)
    (tmp_path / "audits").mkdir()
    (tmp_path / "audits" / "no_owls.sql").write_text(
        "-- No task speaks of owls.\nSELECT prompt FROM kept_prompts WHERE contains(prompt, 'owl')"
    )
    path.write_text(path.read_text() + "- audit: [no_owls]\n")
    with pytest.raises(AuditError, match=r"no_owls: No task speaks of owls. \d+ violations"):
        run(load_spec(path), store, _quiet)


def test_a_run_killed_twenty_times_ends_as_one_that_was_not(tmp_path: Path) -> None:
    """SIGKILL at random moments: nothing that was acknowledged is lost, nothing answered is asked again."""
    path = scripted_spec(tmp_path, accept=250, latency=0.004, shuffle=5)
    store, rng, kills = Store(tmp_path / "killed.duckdb"), Random(1), 0
    acknowledged: set[str] = set()
    command = [sys.executable, "-m", "factory.cli", "run", str(path), "--store", str(store.path)]
    while kills < 20:
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        try:
            process.wait(0.35 + 0.9 * rng.random())
            break
        except subprocess.TimeoutExpired:
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
            kills += 1
        if store.path.exists():
            keys = {k for (k,) in store.rows('SELECT "key" FROM calls')}
            assert acknowledged <= keys, "an acknowledged reply was lost"
            acknowledged = keys
    subprocess.run(command, check=True, capture_output=True)
    assert kills == 20, f"the run ended after {kills} kills: make it longer"
    whole = Store(tmp_path / "whole.duckdb")
    run(load_spec(path), whole, _quiet)
    assert store.rows('SELECT count(*) - count(DISTINCT "key") FROM calls') == [(0,)], "something was asked twice"
    assert _content(store) == _content(whole)


def test_others_read_while_a_run_writes(tmp_path: Path, store: Store) -> None:
    path = scripted_spec(tmp_path, accept=200, latency=0.002)
    command = [sys.executable, "-m", "factory.cli", "run", str(path), "--store", str(store.path)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    seen, reads = [0], 0
    while process.poll() is None:
        if store.path.exists():
            seen.append(store.rows("SELECT count(*) FROM prompts")[0][0])
            reads += 1
        time.sleep(0.005)
    assert process.returncode == 0, process.stderr.read().decode() if process.stderr else ""
    assert reads > 50
    assert seen == sorted(seen), "rows only ever come"
