"""`decontaminate`: what stands in an evaluation set is found, lightly changed too; what only sounds like it is kept."""

import json
from pathlib import Path
from random import Random

import polars as pl
import pytest

from factory.errors import DataError
from factory.flow import screen
from factory.records import Completion, Prompt, user
from factory.store import Store
from factory.text import words
from filters.decontaminate import Decontaminate

LONG = "A baker makes {0} loaves each morning, sells {1} of them before noon and gives {2} to the school next door."


def _frame(prompts: list[str], texts: list[str] | None = None) -> pl.DataFrame:
    return pl.DataFrame({"id": [str(i) for i in range(len(prompts))], "prompt": prompts, "text": texts or prompts})


def _set(folder: Path, *rows: dict[str, str]) -> Path:
    path = folder / "heldout.jsonl"
    path.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows), encoding="utf-8")
    return path


def _edited(text: str, rng: Random, join: str = " ") -> str:
    """Light edits: one word in twelve, or one Chinese character in twenty, replaced, left out or put in."""
    parts = text.split(" ") if join else list(text)
    for _ in range(max(1, len(parts) // (12 if join else 20))):
        place, kind = rng.randrange(len(parts)), rng.random()
        if kind < 0.4:
            parts[place] = rng.choice(("some", "his", "many", "good") if join else "的了和在")
        elif kind < 0.7 and len(parts) > 3:
            del parts[place]
        else:
            parts.insert(place, rng.choice(("really", "also", "then") if join else "很也就"))
    return join.join(parts)


def _lines(path: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize("target", ["prompts", "completions"])
def test_gsm8k_planted_into_nine_thousand_rows(shared: Path, target: str) -> None:
    alpaca = json.loads((shared / "alpaca_9k.json").read_text(encoding="utf-8"))[:5000]
    rows = [(f"{r['instruction']}\n{r['input']}".strip(), r["output"]) for r in alpaca]
    rows += [(r["question"], r["answer"]) for r in _lines(shared / "gsm8k_train.jsonl")[:4000]]
    test, rng, clean = _lines(shared / "gsm8k_test.jsonl"), Random(0), len(rows)
    rows += [(r["question"], r["answer"]) for r in test[:600]]
    rows += [(_edited(r["question"], rng), r["answer"]) for r in test[600:1200]]
    frame = _frame([p for p, _ in rows], [a for _, a in rows])
    step = Decontaminate(heldout=shared / "gsm8k_test.jsonl", target=target)  # type: ignore[arg-type]
    verdicts = step.screen(frame)
    dropped = ~verdicts["keep"]
    shares = [dropped[clean : clean + 600].mean(), dropped[clean + 600 :].mean(), dropped[:clean].mean()]
    print(f"GSM8K planted into {target}: verbatim, edited and false hits: {shares}")
    assert dropped[clean : clean + 600].mean() == 1.0
    assert dropped[clean + 600 :].mean() >= 0.9  # type: ignore[operator]
    assert dropped[:clean].mean() <= 0.001  # type: ignore[operator]
    assert verdicts["reason"][clean] == "in_heldout"
    assert verdicts["evidence"][clean] == f"{test[0]['question']}\n{test[0]['answer']}"
    assert verdicts["evidence_id"][clean] == "gsm8k_test.jsonl:1"


def test_chinese_rows_planted_and_edited(shared: Path, tmp_path: Path) -> None:
    rows = json.loads((shared / "alpaca_zh_demo.json").read_text(encoding="utf-8"))
    held = [r for r in rows[:300] if len(words(r["instruction"] + r["input"])) >= 30]
    path, rng = _set(tmp_path, *held), Random(1)
    clean = [f"{r['instruction']}\n{r['input']}".strip() for r in rows[300:]]
    planted = [f"{r['instruction']}\n{r['input']}".strip() for r in held]
    edited = [_edited(p, rng, "") for p in planted]
    dropped = ~Decontaminate(heldout=path).screen(_frame(clean + planted + edited))["keep"]
    assert len(held) > 25
    assert dropped[len(clean) : len(clean) + len(held)].all()
    assert dropped[len(clean) + len(held) :].mean() >= 0.9  # type: ignore[operator]
    assert dropped[: len(clean)].mean() <= 0.01  # type: ignore[operator]


def test_numbers_tell_tasks_apart_and_short_items_are_looked_for_whole(tmp_path: Path) -> None:
    path = _set(
        tmp_path, {"instruction": "Which number is larger, 14 or 37?"}, {"instruction": "哪个数更大，14 还是 37？"}
    )
    prompts = [
        "Which number is larger, 14 or 38?",
        "which number is  larger, 14 or 37?",
        "哪个数更大，14 还是 38？",
        "哪个数更大，14 还是 37？",
    ]
    verdicts = Decontaminate(heldout=path).screen(_frame(prompts))
    assert verdicts["reason"].to_list() == ["", "in_heldout", "", "in_heldout"]


def test_a_common_phrase_is_no_evidence(tmp_path: Path) -> None:
    story = "How many are left in total after all of this has been done at the end of the very same day? "
    path = _set(tmp_path, {"question": f"{story} It concerns Ada and nine red apples."})
    prompts = [f"{story} It is about case {i} of {i * 7} unlike parts." for i in range(60)]
    assert Decontaminate(heldout=path).screen(_frame(prompts))["keep"].all()


def test_a_question_inside_a_longer_prompt_is_found(tmp_path: Path) -> None:
    question = LONG.format(120, 40, 15)
    path = _set(tmp_path, {"question": question, "answer": "65"})
    asked = f"You are a teacher. Solve this with care.\n\n{question}\n\nThink step by step."
    verdicts = Decontaminate(heldout=path).screen(_frame([asked, "Write a poem about a baker and a school."]))
    assert verdicts["reason"].to_list() == ["in_heldout", ""]


def test_both_texts_of_a_hit_are_one_query_away(store: Store, tmp_path: Path) -> None:
    item = LONG.format(120, 40, 15)
    path = _set(tmp_path, {"question": item, "answer": "65"})
    near = Prompt(user(item.replace("each morning", "every single morning")))
    others = [Prompt(user(f"Tell me about the history of town number {i}.")) for i in range(30)]
    store.append([near, *others], "tasks")
    told = screen(store, Decontaminate(heldout=path), "decontaminate", "tasks", ())
    assert told == "30 of 31 prompts kept (1 near_heldout)"
    assert store.rows('SELECT "text", evidence, evidence_id FROM drops') == [
        (near.text, f"{item}\n65", "heldout.jsonl:1")
    ]


def test_several_sets_and_the_completion_that_gives_an_item_away(tmp_path: Path) -> None:
    one = _set(tmp_path, {"question": "What is the capital of France?"})
    two = tmp_path / "two.jsonl"
    two.write_text(json.dumps({"question": "Tell the baker's story.", "answer": LONG.format(1, 2, 3)}) + "\n")
    prompt = Prompt(user("Make something up."))
    leak = Completion(prompt.id, LONG.format(1, 2, 3))
    frame = _frame(["Make something up."] * 2 + ["Say hi."] * 8, [leak.text, "Once upon a time."] + ["hi"] * 8)
    verdicts = Decontaminate(heldout=(one, two), target="completions").screen(frame)
    assert verdicts["reason"].to_list()[:2] == ["near_heldout", ""]
    assert verdicts["evidence_id"][0] == "two.jsonl:1"


@pytest.mark.parametrize(
    ("content", "said"),
    [("{broken\n", "line 1: no JSON object"), ('{"text": "x"}\n', "line 1: needs `prompt`, `question`")],
)
def test_a_set_that_cannot_be_read_is_told_with_its_line(tmp_path: Path, content: str, said: str) -> None:
    path = tmp_path / "heldout.jsonl"
    path.write_text(content)
    with pytest.raises(DataError, match=said):
        Decontaminate(heldout=path).screen(_frame(["a"]))


@pytest.mark.parametrize("text", ["", "word", "\x00\x01", "🙂🙂", "שלום עולם", "x" * 200_000, "猫"])
def test_odd_texts_are_judged_and_never_lost(tmp_path: Path, text: str) -> None:
    path = _set(tmp_path, {"question": LONG.format(1, 2, 3)}, {"question": "猫"})
    verdicts = Decontaminate(heldout=path).screen(_frame([text, "other"]))
    assert verdicts["id"].to_list() == ["0", "1"]
    assert verdicts["keep"].to_list() == [text != "猫", True]
