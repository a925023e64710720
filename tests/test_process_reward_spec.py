"""Process beside outcome rewards as a packaged spec: two reward models of the same solutions, and GRPO from each."""

from itertools import takewhile
from pathlib import Path

from factory.conformance import lines
from factory.mini.world import solve
from factory.run import run
from factory.spec import TrainStage, load_spec
from factory.store import Store
from factory.training_rows import source

SPECS = Path(__file__).parent.parent / "specs"


def _small(folder: Path) -> Path:
    """The packaged spec with few problems, solutions and steps."""
    text = (SPECS / "process_reward.yaml").read_text()
    few = "".join((SPECS / "seeds" / "mini_problems.jsonl").read_text().splitlines(True)[:24])
    (folder / "few.jsonl").write_text(few)
    for old, new in (
        ("seeds/mini_problems.jsonl", "few.jsonl"),
        ("templates/", f"{SPECS}/templates/"),
        ("rewards/", f"{SPECS}/rewards/"),
        ("n: 8", "n: 4"),
        ("num_train_epochs: 4", "max_steps: 2"),
        ("max_steps: 30", "max_steps: 1"),
    ):
        assert old in text, old
        text = text.replace(old, new)
    path = folder / "process_reward.yaml"
    path.write_text(text)
    return path


def test_the_two_rewards_differ_in_their_labels_alone() -> None:
    stages = {s.name: s for s in load_spec(SPECS / "process_reward.yaml").stages if isinstance(s, TrainStage)}
    sizes = [stages[name].options["per_device_train_batch_size"] for name in ("outcome", "process")]
    assert sizes[0] < sizes[1]  # a row of rankings holds several solutions
    outcome, process = (stages[name].options | {"per_device_train_batch_size": 1} for name in ("outcome", "process"))
    assert outcome == process
    by_outcome, by_process = (dict(stages[f"by_{name}"].options) for name in ("outcome", "process"))
    assert (by_outcome.pop("reward"), by_process.pop("reward")) == ({"model": "@outcome"}, {"model": "@process"})
    assert by_outcome == by_process


def test_both_learn_from_the_same_solutions(tmp_path: Path, store: Store) -> None:
    said: list[str] = []
    run(load_spec(_small(tmp_path)), store, said.append)
    assert any("audit" in line and "passed" in line for line in said)
    # 1. Labels: all steps up to the first wrong one have one, and nearly all are what the world's checker says.
    hits = list[bool]()
    for prompt, steps, labels in store.rows("SELECT prompt, steps, labels FROM step_labels"):
        known = list(takewhile(lambda label: label is not None, labels))
        assert known == [1] * len(known) or known == [1] * (len(known) - 1) + [0]
        task = solve(prompt)
        assert task
        exact, held = task.answer.split("\n"), True
        for place, label in enumerate(known):
            held = held and exact[place : place + 1] == steps[place : place + 1]
            hits.append(label == held)
    assert len(hits) > 100
    assert sum(hits) / len(hits) > 0.95
    # 2. Rankings hold right answers above wrong ones, of the same solutions.
    rankings = store.rows("SELECT scores FROM rankings WHERE dataset = 'solutions' AND scores[1] > scores[-1]")
    assert len(rankings) > 5
    assert {score for (scores,) in rankings for score in scores} == {0.0, 1.0}
    assert lines(store, "solutions")
    # 3. Each policy was rewarded by its own model, and the gold reward was measured beside it.
    gold = "SELECT stage FROM metrics WHERE name = 'objective/gold' ORDER BY stage"
    assert store.rows(gold) == [("by_outcome",), ("by_process",)]
    trained = {path.name.partition("-")[0] for path in store.path.parent.glob("*.files/*") if "-" in path.name}
    assert trained == {"outcome", "process", "by_outcome", "by_process"}


def test_a_query_may_be_longer_than_the_name_of_a_file(store: Store) -> None:
    query = f"SELECT prompt, steps, labels FROM step_labels WHERE dataset = 'd' AND prompt <> '{'long ' * 100}'"
    assert source(store, query, "step_labels", "process_reward", print).sql == query
