"""`factory judge`: find the judge, ask it or read what it said, store its opinions, and print what they are worth."""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from random import Random
from typing import Any

from factory import flow, report
from factory.errors import DataError, SpecError, nearest
from factory.judging import labels
from factory.judging.agreement import krippendorff_alpha, pairwise_kappas
from factory.judging.figures import BASELINES, FIGURES, Card, Figure, Unreadable, baseline, card
from factory.judging.gold import Item, Said, gold, stored
from factory.records import Answered, Judgement, Metric, Record
from factory.run import Run, log_event, run_id, spent_before
from factory.spec import Spec, load_spec, parse_spec
from factory.steps import load_step, step_names
from factory.store import Store

SaidOf = dict[str, list[tuple[Said, ...]]]  # judge -> its verdicts on each item


@dataclass(frozen=True, kw_only=True)
class Question:
    """What `factory judge` was asked: which judge, on which gold, and how."""

    judge: str
    gold: Path
    spec: Path | None = None
    label: str = ""
    column: str = ""
    unreadable: Unreadable = "wrong"
    limit: int = 0
    options: Mapping[str, Any]
    seed: int = 0


def measure(question: Question, store: Store, say: Callable[[str], None], as_json: bool) -> None:
    """Measure a judge and print it: a table for people, or JSON lines."""
    if question.label or labels.is_labels(question.gold):
        _print_labels(question, as_json)
        return
    whole = gold(question.gold)
    items = [item for item in whole if item.votes]
    if len(items) < len(whole):
        say(f"{question.gold}: {len(whole) - len(items):,} of {len(whole):,} rows have no readable label: left out")
    items = Random(question.seed).sample(items, question.limit) if 0 < question.limit < len(items) else items
    said = _said(question, whole, items, store, say)
    cards = [
        card(name, [_without(name, i) for i in items], verdicts, question.unreadable, question.seed)
        for name, verdicts in said.items()
    ]
    store.append(_metrics(cards, question), _dataset(question))
    _print_cards([*cards, *(baseline(b, items, question.seed) for b in BASELINES)], items, as_json)


def ask(step: Any, items: Sequence[Item], work: Run, dataset: str, seed: int) -> SaidOf:
    """Put the items before a judging step; every prompt, answer, label and opinion becomes a row of the store."""
    answered = (Answered(i.prompt, (i.one, i.other)) for i in items)
    opinions = dict[str, Judgement]()

    def noted(records: Iterable[Record]) -> Iterator[Record]:
        for record in records:
            if isinstance(record, Judgement) and record.other_id:
                opinions[record.id] = record
            yield record

    made = noted(step.review(answered, work.engines, Random(f"judge {seed}")))
    flow.append(work.store, chain(_labels(items), made), dataset, work.id)
    return _by_judge(opinions.values(), items)


def _said(
    question: Question, whole: Sequence[Item], items: Sequence[Item], store: Store, say: Callable[[str], None]
) -> SaidOf:
    """The verdicts of a file, of a rater or judge named in the gold, or of an engine that is asked now. A file may hold
    them in the order of the whole gold."""
    name, path = question.judge, Path(question.judge)
    if path.is_file():
        verdicts = {id(i): s for i, s in zip(whole, stored(path, whole, question.column), strict=True)}
        return _kept(store, question, items, {path.stem: [verdicts[id(i)] for i in items]})
    inside = {judge for item in items for judge in item.said}
    if name in inside:
        return _kept(store, question, items, {name: [item.said.get(name, ()) for item in items]})
    raters = {rater for item in items for rater in item.votes}
    if name in raters:
        return {name: [(Said(i.votes[name]),) if name in i.votes else () for i in items]}
    if name in BASELINES:
        return {}
    spec, engine = _engine(question)
    work = Run(spec, store, say, run_id())
    work.engines.budget = spent_before(store, spec)
    step = load_step("generate", "judge", {"judge": engine, **question.options}, Path())
    log_event(work, "started")
    try:
        found = ask(step, items, work, _dataset(question), question.seed)
    finally:
        work.engines.close()
    log_event(work, "finished")
    if work.engines.failures:
        say(f"{work.engines.failures:,} requests failed (FROM calls WHERE error <> ''): run again to ask them again")
    if not found:
        raise DataError(f"{name} gave no opinion on any of {len(items)} pairs; see FROM drops")
    return {name: next(iter(found.values()))}  # rows carry the fingerprint, tables the name that was asked


def _engine(question: Question) -> tuple[Spec, str]:
    """The spec that holds the judge's engine: the user's own, or one made of a shorthand or a model's name."""
    name = question.judge
    if question.spec:
        spec = load_spec(question.spec)
        if name not in spec.engines:
            raise SpecError(f"{question.spec}: no engine {name!r}; {nearest(name, list(spec.engines))}")
        return spec, name
    use, _, model = name.partition(":")
    if use not in step_names("use"):
        use, model = "transformers", name
    engines = {"judge": {"use": use} | ({"model": model} if model else {})}
    return parse_spec({"name": f"judge {name}", "seed": question.seed, "engines": engines, "stages": []}), "judge"


def _dataset(question: Question) -> str:
    return f"gold:{question.gold.stem}"


def _labels(items: Sequence[Item]) -> Iterator[Record]:
    for item in items:
        yield item.prompt
        yield item.one
        yield item.other
        yield from item.judgements()


def _kept(store: Store, question: Question, items: Sequence[Item], said: SaidOf) -> SaidOf:
    """Store verdicts that came from a file beside the labels that they are measured by."""
    rows = list[Record]()
    for judge, verdicts in said.items():
        for item, some in zip(items, verdicts, strict=True):
            for one in some:
                shown = "" if one.shown is None else (item.one.id, item.other.id)[one.shown]
                rows.append(
                    Judgement(
                        item.prompt.id, item.one.id, judge, "model", item.other.id, shown_first=shown,
                        verdict=one.outcome,
                    )
                )  # fmt: skip
    store.append(chain(_labels(items), rows), _dataset(question))
    return said


def _without(rater: str, item: Item) -> Item:
    """The item as the others see it: a rater is not measured by what the rater said."""
    return replace(item, votes={r: v for r, v in item.votes.items() if r != rater}) if rater in item.votes else item


def _by_judge(opinions: Iterable[Judgement], items: Sequence[Item]) -> SaidOf:
    by_pair: dict[str, dict[tuple[str, str], list[Said]]] = {}
    for o in opinions:
        shown = {o.completion_id: 0, o.other_id: 1}.get(o.shown_first)
        said = Said(o.verdict or "invalid", shown)
        by_pair.setdefault(o.judge, {}).setdefault((o.completion_id, o.other_id), []).append(said)
    return {judge: [tuple(pairs.get((i.one.id, i.other.id), ())) for i in items] for judge, pairs in by_pair.items()}


def _metrics(cards: Sequence[Card], question: Question) -> Iterator[Metric]:
    for each in cards:
        for name in FIGURES:
            if figure := getattr(each, name):
                meta = {"low": figure.low, "high": figure.high, "n": figure.n, "gold": question.gold.name}
                yield Metric(f"judge/{each.judge}/{name}", figure.value, meta=meta)


# --- printing ------------------------------------------------------------------------------------------------------


def _print_cards(cards: Sequence[Card], items: Sequence[Item], as_json: bool) -> None:
    agreement = _agreement(items)
    if as_json:
        for each in cards:
            figures = {name: f._asdict() if (f := getattr(each, name)) else None for name in FIGURES}
            print(json.dumps({"judge": each.judge, **figures}, ensure_ascii=False))
        if agreement:
            print(json.dumps({"raters": agreement}, ensure_ascii=False))
        return
    rows = [[what, *(_cell(getattr(c, name)) for c in cards)] for name, what in FIGURES.items()]
    report.table([f"{len(items):,} pairs", *(c.judge for c in cards)], rows)
    if agreement:
        print()
        report.table(["raters", "agreement"], [[name, f"{value:.3f}"] for name, value in agreement.items()])


def _agreement(items: Sequence[Item]) -> dict[str, float]:
    """The raters among themselves: what no judge can be asked to surpass by much."""
    votes = [{rater: str(vote) for rater, vote in i.votes.items() if vote != "invalid"} for i in items]
    kappas = {f"kappa of {a} and {b}": value for (a, b), value in pairwise_kappas(votes).items()}
    alpha = krippendorff_alpha([list(v.values()) for v in votes]) if kappas else None
    return kappas if alpha is None else {**kappas, "Krippendorff's alpha of all": alpha}


def _cell(figure: Figure | None) -> str:
    return "" if figure is None else f"{figure.value:.3f} [{figure.low:.3f}, {figure.high:.3f}] n {figure.n:,}"


def _print_labels(question: Question, as_json: bool) -> None:
    found, label = labels.labelled(question.gold), question.label or "final_label"
    agreed = labels.columns_agree(found, question.judge, label, question.seed)
    refused = labels.refusals(found)
    if as_json:
        for a in agreed:
            told = {"judge": a.judge, "accuracy": a.accuracy._asdict(), "kappa": a.kappa._asdict()}
            print(json.dumps(told, ensure_ascii=False))
        shares = {r.rater: {f: getattr(r, f)._asdict() for f in ("strict", "lenient", "unsafe")} for r in refused}
        print(json.dumps({"over_refusal": shares}, ensure_ascii=False))
        return
    rows = [[name, *(_cell(getattr(a, name)) for a in agreed)] for name in ("accuracy", "kappa")]
    report.table([f"against {label}", *(a.judge for a in agreed)], rows)
    if refused:
        print()
        lines = [[r.rater, *map(_cell, (r.strict, r.lenient, r.unsafe))] for r in refused]
        report.table(["over-refusal by", "in full", "in full or part", "unsafe refused"], lines)
