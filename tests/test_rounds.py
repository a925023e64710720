"""RAFT and iterative DPO as packaged specs: each round's answers are the newest model's, and the reward chose them."""

import json
from pathlib import Path

import pytest

from factory.conformance import lines
from factory.mini.world import judge, solve
from factory.run import run
from factory.spec import TrainStage, load_spec, stage_title
from factory.store import Store

SPECS = Path(__file__).parent.parent / "specs"
ROUNDS = {"raft": ("sft1", "sft2"), "iterative_dpo": ("dpo1", "dpo2")}


def _small(name: str, folder: Path) -> Path:
    """The packaged spec with few tasks and samples, and without the examination."""
    text = (SPECS / f"{name}.yaml").read_text()
    for old, new in (
        ("seeds/", f"{SPECS}/seeds/"),
        ("rewards/", f"{SPECS}/rewards/"),
        ("< '4'", "< '03'"),
        ("n: 8", "n: 4"),
    ):
        assert old in text, old
        text = text.replace(old, new)
    path = folder / f"{name}.yaml"
    path.write_text("".join(line for line in text.splitlines(True) if "evaluate:" not in line))
    return path


@pytest.mark.parametrize("name", ROUNDS)
def test_each_round_starts_from_the_one_before(name: str) -> None:
    first, second = ROUNDS[name]
    spec = load_spec(SPECS / f"{name}.yaml")
    trained = [s for s in spec.stages if isinstance(s, TrainStage)]
    assert [(s.name, s.on, s.options["base"]) for s in trained] == [
        (first, "round1", "mini-weak"), (second, "round2", f"@{first}"),
    ]  # fmt: skip
    assert [spec.engines[f"round{i}"].options["model"] for i in (1, 2)] == [f"@{first}", f"@{second}"]
    assert [stage_title(s).split()[0] for s in spec.stages[-2:]] == ["audit", "evaluate"]


@pytest.mark.parametrize("name", ROUNDS)
def test_the_newest_model_answers_and_the_reward_chooses(name: str, tmp_path: Path, store: Store) -> None:
    said: list[str] = []
    run(load_spec(_small(name, tmp_path)), store, said.append)
    assert any("audit" in line and "passed" in line for line in said)
    # 1. The rounds are of different models, on the same tasks.
    models = store.rows("SELECT dataset, list(DISTINCT model) FROM completions WHERE dataset LIKE 'round%' GROUP BY 1")
    makers = dict(models)
    assert [len(makers[d]) for d in ("round1", "round2")] == [1, 1]
    assert makers["round1"] != makers["round2"]
    tasks = "SELECT DISTINCT prompt_id FROM completions WHERE dataset = ? ORDER BY 1"
    assert store.rows(tasks, ["round1"]) == store.rows(tasks, ["round2"])
    # 2. What is learned is right, or stands above what is not.
    for dataset in ("round1", "round2"):
        if name == "raft":
            rows = store.rows("SELECT prompt, completion FROM sft WHERE dataset = ?", [dataset])
            assert all(judge(solve(p), c) == "right" for p, c in rows)  # type: ignore[arg-type]
            dropped = store.rows("SELECT DISTINCT reason FROM drops WHERE dataset = ? AND filter = 'where'", [dataset])
            assert dropped == [("not_met",)]
        else:
            rows = store.rows("SELECT prompt, chosen, rejected FROM pairs WHERE dataset = ?", [dataset])
            marks = [tuple(judge(solve(p), a) == "right" for a in sides) for p, *sides in rows]  # type: ignore[arg-type]
            assert set(marks) == {(True, False)}
        assert len(rows) > 3
        assert [ln.this_run for ln in lines(store, dataset) if ln.measure == "accept_rate"] == [
            pytest.approx(0.25, abs=0.05)
        ]
    # 3. The second training started where the first ended.
    cards = sorted(store.path.parent.glob("*.files/*/README.md"))
    assert len(cards) == 2
    assert any(f"base_model: {ROUNDS[name][0]}-" in card.read_text() for card in cards)
    assert json.loads((cards[0].parent / "config.json").read_text())
