"""The judge as an instrument: known figures to the digit, agreement of raters, engines as judges, the command."""

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from factory.cli import main
from factory.errors import DataError
from factory.judging.agreement import cohen_kappa, krippendorff_alpha, majority, pairwise_kappas
from factory.judging.figures import FIGURES, Card, baseline, card
from factory.judging.gold import Said, gold, outcome_of, stored
from factory.judging.labels import columns_agree, labelled, refusals
from factory.store import Store

# The best known example of nominal data with gaps: three coders, fifteen units; its alpha is 0.691.
TEXTBOOK = {
    "A": "* * * * * 3 4 1 2 1 1 3 3 * 3".split(),
    "B": "1 * 2 1 3 3 4 3 * * * * * * *".split(),
    "C": "* * 2 1 3 4 4 * 2 1 1 3 3 * 4".split(),
}


def gold_file(folder: Path, n: int = 40) -> Path:
    """Pairs of sums, half English and half Chinese, where the first answer is right in even rows."""
    path = folder / "sums.jsonl"
    with path.open("w", encoding="utf-8") as file:
        for i in range(n):
            ask = f"What is {i} + 1?" if i % 4 < 2 else f"{i}加1等于几？"
            answers = [f"It is {i + 1}.", f"I believe that it may well be {i}."]
            row = {"id": i, "prompt": ask, "label": "A" if i % 2 == 0 else "B"}
            row |= dict(zip(("first", "second"), answers if i % 2 == 0 else answers[::-1], strict=True))
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
    return path


def spec_file(folder: Path, replies: dict[str, str], **faults: Any) -> Path:
    path = folder / "judges.yaml"
    engine = {"use": "scripted", "model": "arbiter", "replies": replies, **faults}
    path.write_text(json.dumps({"name": "judges", "engines": {"arbiter": engine}, "stages": []}, ensure_ascii=False))
    return path


def judged(*args: object, folder: Path) -> list[dict[str, Any]]:
    result = CliRunner().invoke(main, ["judge", *map(str, args), "--json", "--store", str(folder / "s.duckdb")])
    assert result.exit_code == 0, result.output
    return [json.loads(line) for line in result.stdout.splitlines()]


# --- known figures -------------------------------------------------------------------------------------------------


def test_o1_mini_on_judgebench_to_the_digit(shared: Path) -> None:
    items = gold(shared / "judgebench_gpt4o.jsonl")
    found = card("o1-mini", items, stored(shared / "judgebench_gpt4o_judge_o1mini.jsonl", items))
    assert found.accuracy
    assert found.flips
    assert found.first_slot
    assert (round(100 * found.accuracy.value, 2), found.accuracy.n) == (65.71, 350)
    assert round(100 * found.flips.value, 1) == 31.4
    assert found.accuracy.low < 0.6571 < found.accuracy.high
    assert 0.04 < (found.accuracy.high - found.accuracy.low) / 2 < 0.06  # 1.96 * sqrt(p (1 - p) / 350) = 0.0497
    assert found.first_slot.low > 0.5, "it leans to the answer shown first"
    longest = baseline("longest", items).accuracy
    assert longest
    assert round(longest.value, 2) == 0.46


def test_the_verdicts_that_come_with_the_pairs_give_the_same_figures(shared: Path) -> None:
    items = gold(shared / "judgebench_gpt4o_judge_o1mini.jsonl")
    (name,) = items[0].said
    assert name == "o1-mini-2024-09-12"
    found = card(name, items, [i.said[name] for i in items])
    assert found.accuracy
    assert round(100 * found.accuracy.value, 2) == 65.71


def test_gpt35_on_pandalm_to_the_digit(shared: Path) -> None:
    """The published figures count a reply that could not be read as a tie; by our own rule it is wrong."""
    items = gold(shared / "pandalm_testset.json")
    verdicts = stored(shared / "pandalm_gpt35_verdicts.json", items)
    found, strict = card("gpt-3.5", items, verdicts, "tie"), card("gpt-3.5", items, verdicts)
    assert found.accuracy
    assert found.kappa
    assert found.invalid
    assert strict.accuracy
    assert (round(found.accuracy.value, 3), round(found.kappa.value, 3), found.accuracy.n) == (0.711, 0.496, 999)
    assert round(found.invalid.value * 999) == 25
    assert strict.accuracy.value < found.accuracy.value


def test_the_people_of_pandalm_agree_as_known(shared: Path) -> None:
    votes = [{r: str(v) for r, v in item.votes.items()} for item in gold(shared / "pandalm_testset.json")]
    assert [round(k, 3) for k in pairwise_kappas(votes).values()] == [0.852, 0.879, 0.862]
    alpha = krippendorff_alpha([list(v.values()) for v in votes])
    assert alpha
    assert round(alpha, 3) == 0.864


def test_xstest_raters_and_over_refusal_to_the_digit(shared: Path) -> None:
    gpt4 = labelled(shared / "xstest_completions_gpt4.csv")
    found, most, dice = columns_agree(gpt4, "annotation_1", "annotation_2")
    assert round(found.kappa.value, 3) == 0.970
    assert 0.94 < found.kappa.low < 0.970 < found.kappa.high < 1
    assert found.accuracy.low < found.accuracy.value < found.accuracy.high
    assert most.judge.startswith("always 1_full"), "the commonest label"
    assert (round(most.accuracy.value, 3), most.kappa.value) == (0.513, 0.0), "231 of 450"
    assert (dice.accuracy.value, dice.kappa.value) == (1 / 3, 0.0)
    known = {"gpt4": (6.4, 8.4, 97.5), "llama2orig": (38.0, 59.6, 99.5)}
    for name, figures in known.items():
        rows = labelled(shared / f"xstest_completions_{name}.csv")
        final = next(r for r in refusals(rows) if r.rater == "final_label")
        assert tuple(round(100 * f.value, 1) for f in final[1:]) == figures
        assert (final.strict.n, final.lenient.n, final.unsafe.n) == (250, 250, 200)
        assert all(f.low < f.value < f.high for f in final[1:])


def test_any_preference_file_is_gold_and_its_winners_stand_on_both_sides(shared: Path) -> None:
    items = gold(shared / "dpo_zh_demo.json")
    assert len(items) == 300
    assert 100 < sum(i.truth == "win" for i in items) < 200
    longest, chance = baseline("longest", items), baseline("random", items)
    assert longest.accuracy
    assert chance.accuracy
    assert chance.kappa
    assert round(longest.accuracy.value, 2) == 0.62
    assert (chance.accuracy.value, round(chance.kappa.value, 9)) == (0.5, 0.0)


def _rows(path: Path, found: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in found), encoding="utf-8")
    return path


def test_a_label_that_cannot_be_read_is_no_truth_and_is_counted(tmp_path: Path) -> None:
    labels = ["unclear", None, "1", "2", "看不出"]
    found = [
        {"prompt": f"多少？{i}", "first": "一", "second": "二二", "label": label} for i, label in enumerate(labels)
    ]
    path = _rows(tmp_path / "gold.jsonl", found)
    assert [item.truth for item in gold(path)] == [None, None, "win", "lose", None]
    args = ["judge", "scripted", "--gold", str(path), "--json", "--store", str(tmp_path / "s.duckdb")]
    result = CliRunner().invoke(main, args)
    mute = json.loads(result.stdout.splitlines()[0])
    assert (mute["accuracy"]["value"], mute["accuracy"]["n"], mute["kappa"]["value"]) == (0.0, 2, 0.0)
    assert "3 of 5 rows have no readable label" in result.output
    assert Store(tmp_path / "s.duckdb").rows("SELECT count(*) FROM calls") == [(4,)], "nobody is asked about the others"
    with pytest.raises(DataError, match="no labelled pairs"):
        gold(_rows(path, found[:2]))


def test_verdicts_are_matched_by_a_key_only_where_it_names_one_pair(tmp_path: Path) -> None:
    pairs = [{"question_id": 81, "prompt": f"q{i}", "first": "a", "second": "b", "label": "unclear"} for i in range(2)]
    pairs.append({"question_id": 82, "prompt": "q2", "first": "a", "second": "b", "label": "A"})
    items = gold(_rows(tmp_path / "gold.jsonl", pairs))
    told = [{"question_id": 81, "verdict": "A"}, {"question_id": 81, "verdict": "B"}]
    told.append({"question_id": 82, "verdict": "tie"})
    outcomes = [(Said("win"),), (Said("lose"),), (Said("tie"),)]
    assert stored(_rows(tmp_path / "said.jsonl", told), items) == outcomes
    for wrong in (told[:2], told[::-1]):
        with pytest.raises(DataError, match="several rows have the same 'question_id'"):
            stored(_rows(tmp_path / "said.jsonl", wrong), items)
    numbered = [{**row, "id": i} for i, row in enumerate(told)][::-1]
    items = gold(_rows(tmp_path / "gold.jsonl", [{**row, "id": i} for i, row in enumerate(pairs)]))
    assert stored(_rows(tmp_path / "said.jsonl", numbered), items) == outcomes, "another key may be unique"


# --- agreement -----------------------------------------------------------------------------------------------------


def test_alpha_of_the_textbook() -> None:
    units = [[c for c in column if c != "*"] for column in zip(*TEXTBOOK.values(), strict=True)]
    alpha = krippendorff_alpha(units)
    assert alpha
    assert round(alpha, 3) == 0.691


def test_kappa_by_hand() -> None:
    """20 yes-yes, 5 yes-no, 10 no-yes, 15 no-no: (0.70 - 0.50) / (1 - 0.50) = 0.40."""
    pairs = [("y", "y")] * 20 + [("y", "n")] * 5 + [("n", "y")] * 10 + [("n", "n")] * 15
    kappa = cohen_kappa(pairs)
    assert kappa is not None
    assert round(kappa, 9) == 0.4


def test_edges_of_agreement() -> None:
    assert cohen_kappa([]) is None
    assert cohen_kappa([("a", "a")] * 5) == 1.0
    assert krippendorff_alpha([["a", "a"], ["a"]]) == 1.0
    assert krippendorff_alpha([["a"], []]) is None
    assert (majority(["win", "win", "tie"]), majority(["win", "lose"]), majority([])) == ("win", None, None)


@pytest.mark.parametrize(
    ("label", "outcome"),
    [
        (1, "win"),
        ("2", "lose"),
        (0, "tie"),
        ("A>B", "win"),
        ("B>>A", "lose"),
        ("Tie", "tie"),
        ("garbage", "invalid"),
        (None, "invalid"),
    ],
)
def test_labels_of_many_files_are_understood(label: object, outcome: str) -> None:
    assert outcome_of(label) == outcome


# --- figures -------------------------------------------------------------------------------------------------------


def measured(folder: Path, *verdicts: tuple[Said, ...]) -> Card:
    items = gold(gold_file(folder, len(verdicts)))
    return card("j", items, verdicts)


def value(card_: Card, name: str) -> float:
    return float(getattr(card_, name).value)


def test_a_judge_that_sees_only_slots(tmp_path: Path) -> None:
    """It flips on every pair; by JudgeBench's rule its sums are zero, so it is right nowhere."""
    found = measured(tmp_path, *[(Said("win", 0), Said("lose", 1))] * 10)
    assert {n: value(found, n) for n in ("accuracy", "flips", "first_slot", "strict", "invalid")} == {
        "accuracy": 0.0, "flips": 1.0, "first_slot": 1.0, "strict": 0.0, "invalid": 0.0
    }  # fmt: skip


def test_one_order_and_a_tie_are_enough_by_the_sum_and_not_by_the_strict_rule(tmp_path: Path) -> None:
    found = measured(tmp_path, (Said("win", 0), Said("tie", 1)), (Said("lose", 0), Said("lose", 1)))
    assert (value(found, "accuracy"), value(found, "strict"), value(found, "flips")) == (1.0, 0.5, 0.5)


def test_an_unread_order_is_no_flip_and_no_vote(tmp_path: Path) -> None:
    found = measured(tmp_path, (Said("invalid", 0), Said("win", 1)), (Said("invalid", 0), Said("invalid", 1)))
    assert (value(found, "accuracy"), value(found, "invalid"), found.flips) == (0.5, 0.75, None)


def test_a_judge_that_was_never_asked_has_no_figures(tmp_path: Path) -> None:
    found = measured(tmp_path, (), ())
    assert [getattr(found, name) for name in FIGURES] == [None] * len(FIGURES)


def test_the_interval_of_a_share_is_that_of_its_binomial(tmp_path: Path) -> None:
    right = [(Said("win" if i % 2 == 0 else "lose"),) for i in range(400)]
    wrong = [(Said("lose" if i % 2 == 0 else "win"),) for i in range(100)]
    found = measured(tmp_path, *wrong, *right[100:]).accuracy
    assert found
    assert found.value == 0.75
    assert found.low == pytest.approx(0.75 - 1.96 * (0.75 * 0.25 / 400) ** 0.5, abs=0.012)
    assert found.high == pytest.approx(0.75 + 1.96 * (0.75 * 0.25 / 400) ** 0.5, abs=0.012)


# --- the command ---------------------------------------------------------------------------------------------------

FAIR = {
    r"answer A\nIt is": "Verdict: A",
    r"answer B\nIt is": "Verdict: B",
    r"回答 A\nIt is": "裁决：A",
    r"回答 B\nIt is": "裁决：B",
}


def test_an_engine_of_a_spec_is_measured_in_both_orders_and_its_opinions_are_rows(tmp_path: Path) -> None:
    found = judged("arbiter", "--gold", gold_file(tmp_path), "--spec", spec_file(tmp_path, FAIR), folder=tmp_path)
    assert [f["judge"] for f in found] == ["arbiter", "longest", "random"]
    assert (found[0]["accuracy"]["value"], found[0]["kappa"]["value"], found[0]["flips"]["value"]) == (1.0, 1.0, 0.0)
    assert (found[0]["first_slot"]["value"], found[0]["longer"]["value"]) == (0.5, 0.0)
    assert found[1]["accuracy"]["value"] == 0.0
    store = Store(tmp_path / "s.duckdb")
    sql = "SELECT judge_kind, count(*), count(DISTINCT shown_first) FROM judgements GROUP BY ALL ORDER BY ALL"
    assert store.rows(sql) == [("model", 80, 80), ("rule", 40, 1)]
    assert store.rows("SELECT count(*) FROM pairs WHERE weight = 1") == [(40,)]
    assert store.rows("SELECT value FROM metrics WHERE name = 'judge/arbiter/accuracy'") == [(1.0,)]


def test_measuring_again_asks_nothing_again(tmp_path: Path) -> None:
    args = ("arbiter", "--gold", gold_file(tmp_path), "--spec", spec_file(tmp_path, FAIR))
    first = judged(*args, folder=tmp_path)
    calls = Store(tmp_path / "s.duckdb").rows("SELECT count(*) FROM calls")
    assert judged(*args, folder=tmp_path) == first
    assert Store(tmp_path / "s.duckdb").rows("SELECT count(*) FROM calls") == calls == [(80,)]


def test_a_judge_with_faults_is_measured_on_what_it_said(tmp_path: Path) -> None:
    spec = spec_file(tmp_path, {"answer A": "Hm.", **FAIR}, error_every=10)
    found = judged("arbiter", "--gold", gold_file(tmp_path), "--spec", spec, folder=tmp_path)[0]
    assert found["accuracy"]["n"] == 32  # eight requests failed, each of another pair
    assert 0.3 < found["invalid"]["value"] < 0.6
    reasons = Store(tmp_path / "s.duckdb").rows("SELECT DISTINCT reason FROM drops ORDER BY ALL")
    assert reasons == [("engine_error",), ("unreadable",)]


def test_a_shorthand_a_file_and_a_sample(tmp_path: Path) -> None:
    path = gold_file(tmp_path)
    mute = judged("scripted", "--gold", path, "--limit", 10, folder=tmp_path)[0]
    assert (mute["judge"], mute["invalid"]["value"], mute["accuracy"]["n"]) == ("scripted", 1.0, 10)
    verdicts = tmp_path / "old.csv"
    verdicts.write_text("id,said\n" + "\n".join(f"{i},{'A' if i % 2 == 0 else 'tie'}" for i in reversed(range(40))))
    old = judged(verdicts, "--gold", path, "--column", "said", folder=tmp_path)[0]
    assert (old["judge"], old["accuracy"]["value"], old["longer"]["value"]) == ("old", 0.5, 0.0)


SLOTS = {"answer A": "Verdict: A", "回答 A": "裁决：A"}


@pytest.mark.parametrize(
    ("name", "limit", "ties"), [("judgebench_gpt4o.jsonl", 120, 0), ("pandalm_testset.json", 120, 0.2)]
)
def test_a_judge_of_slots_is_found_out_on_real_pairs(
    name: str, limit: int, ties: float, shared: Path, tmp_path: Path
) -> None:
    """Its two orders contradict each other everywhere, so its sum is a tie: right only where people saw a tie."""
    args = (shared / name, "--spec", spec_file(tmp_path, SLOTS), "--limit", limit)
    found = judged("arbiter", "--gold", *args, folder=tmp_path)[0]
    assert (found["flips"]["value"], found["first_slot"]["value"], found["strict"]["value"]) == (1.0, 1.0, 0.0)
    assert found["accuracy"]["value"] <= ties
    assert Store(tmp_path / "s.duckdb").rows("SELECT max(weight) < 1 FROM pairs") == [(True,)]


def test_the_table_names_every_figure(tmp_path: Path, shared: Path) -> None:
    args = [
        "judge",
        "annotator1",
        "--gold",
        str(shared / "pandalm_testset.json"),
        "--store",
        str(tmp_path / "s.duckdb"),
    ]
    printed = CliRunner().invoke(main, args).stdout
    for words in (*FIGURES.values(), "longest", "random", "Krippendorff's alpha of all"):
        assert words in printed
    told = (
        CliRunner()
        .invoke(main, ["judge", "annotation_1", "--gold", str(shared / "xstest_completions_gpt4.csv")])
        .stdout
    )
    for words in ("over-refusal by", "unsafe refused", "always 1_full", "random", "0.064 [0.040, 0.101] n 250"):
        assert words in told


@pytest.mark.parametrize(
    ("rows", "verdicts", "said"),
    [
        ('{"prompt": "q"}', "", "no labelled pairs of answers"),
        (
            '{"prompt": "q", "first": "a", "second": "b", "label": 1}',
            '{"x": 1}',
            "no column '' with verdicts|name it with --column",
        ),
        (
            '{"prompt": "q", "first": "a", "second": "b", "label": 1}',
            '{"verdict": 1}\n{"verdict": 2}',
            "2 verdicts for 1 pairs",
        ),
    ],
)
def test_a_file_that_does_not_fit_is_told_in_one_line(tmp_path: Path, rows: str, verdicts: str, said: str) -> None:
    (tmp_path / "gold.jsonl").write_text(rows + "\n")
    (tmp_path / "verdicts.jsonl").write_text(verdicts + "\n")
    with pytest.raises(DataError, match=said):
        stored(tmp_path / "verdicts.jsonl", gold(tmp_path / "gold.jsonl"))
