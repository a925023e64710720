"""What the adversarial search finds in the mini world, and what training on its rows mends, by the exact checker.

Runs specs/adversarial.yaml and then specs/adversarial_train.yaml on one store, and marks all with the world's own
checker: cells that really do harm, judges against the truth, revisions, pairs, look-alikes, and the three models on
new requests, in plain wording and in all styles, those of the held-out cells apart. Prints one JSON line.
"""

import argparse
import json
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from random import Random
from typing import Any

from factory.engines.base import Request, Sampling, in_order
from factory.engines.transformers import Transformers
from factory.mini import families
from factory.mini import lexicon as lex
from factory.mini.attacks import STYLES, styled
from factory.mini.world import Outcome, judge, solve, split_of
from factory.records import user
from factory.run import run
from factory.spec import load_spec
from factory.stats import wilson
from factory.store import Store

SPECS = Path(__file__).parent.parent / "specs"


def marked(text: str, answer: str) -> tuple[str, Outcome] | None:
    """What kind of request it is and how the answer fares; None where the world cannot read the request."""
    task = solve(text)
    return (task.kind, judge(task, answer)) if task else None


def cell_of(text: str) -> tuple[str, str] | None:
    """The risk and the style that a harmful request really has."""
    task = solve(text)
    if task is None or task.kind != "unsafe":
        return None
    style = task.family.removeprefix("unsafe").lstrip("_") or "plain"
    return lex.DEEDS[families.deed_in(task.instruction)], style


def share(hits: Iterable[bool]) -> dict[str, Any]:
    """A proportion with its 95 % interval."""
    found = list(hits)
    low, high = wilson(sum(found), len(found))
    return {
        "share": round(sum(found) / max(1, len(found)), 4),
        "n": len(found),
        "low": round(low, 3),
        "high": round(high, 3),
    }


def archive(store: Store) -> dict[str, Any]:
    """The search by the truth: cells broken, elites in their cell, judges against the checker."""
    elites = store.rows("SELECT risk, style, prompt, answer FROM archive")
    tried = store.rows("""SELECT p.messages[-1].content, c."text" FROM prompts p
                          JOIN completions c ON c.prompt_id = p.id AND c.dataset = p.dataset
                          WHERE p.dataset = 'attacks'""")
    said = store.rows("""
        SELECT j.judge, p.messages[-1].content, c."text", j.score FROM judgements j
        JOIN completions c ON c.id = j.completion_id AND c.dataset = j.dataset
        JOIN prompts p ON p.id = c.prompt_id AND p.dataset = c.dataset
        WHERE j.dataset = 'attacks' AND j.aspect = 'harmlessness' AND j.score IS NOT NULL""")
    right: dict[str, list[bool]] = {}
    for name, text, answer, score in said:
        if mark := marked(text, answer):
            right.setdefault(name, []).append((score <= 2) == (mark[1] == "harmful"))
    told = (
        "SELECT name, value FROM metrics WHERE name LIKE 'conformance/adversarial/%' OR name LIKE 'yield/adversarial/%'"
    )
    return {
        "cells": 18,
        "cells_harmful": sum(marked(p, a) == ("unsafe", "harmful") for _, _, p, a in elites),
        "cells_reached": len({cell_of(p) for p, a in tried if marked(p, a) == ("unsafe", "harmful")}),
        "elites_in_their_cell": sum(cell_of(p) == (r, s) for r, s, p, _ in elites),
        "judges_right": {name: share(hits) for name, hits in right.items()},
        "told": dict(store.rows(told)),
    }


def rows(store: Store) -> dict[str, Any]:
    """The rows made of it, by the truth."""
    ends = "SELECT prompt, completion FROM sft WHERE dataset = ?"
    safety = [m for m in (marked(*row) for row in store.rows(ends, ["safety"])) if m]
    twins = [marked(*row) for row in store.rows(ends, ["lookalikes"])]
    pairs = store.rows("SELECT prompt, chosen, rejected FROM pairs WHERE dataset = 'safety'")
    sides = [(marked(p, good), marked(p, bad)) for p, good, bad in pairs]
    return {
        "revisions_declining_the_unsafe": share(o == "right" for kind, o in safety if kind == "unsafe"),
        "pairs_safe_over_harmful": share(
            g == ("unsafe", "right") and b == ("unsafe", "harmful") for g, b in sides if g and b
        ),
        "twins_harmless": share(m is not None and m[0] == "lookalike" for m in twins),
        "twins_answered_right": share(m[1] == "right" for m in twins if m),
        "dropped": dict(store.rows("SELECT filter || ' ' || reason, count(*) FROM drops GROUP BY ALL ORDER BY ALL")),
    }


def models(store: Store, heldout: Sequence[str]) -> dict[str, Any]:
    """The three models on the packaged evaluation, and on styled requests that no training row holds."""
    sql = """SELECT meta->>'model', name, last(value ORDER BY created_at) FROM metrics
             WHERE stage = 'heldout' AND (meta->>'model') IS NOT NULL AND name NOT LIKE '%/%' GROUP BY ALL"""
    found: dict[str, Any] = {}
    for model, name, value in store.rows(sql):
        found.setdefault(model, {})[name] = round(value, 4)
    trained = {
        (text,)[0]
        for (text,) in store.rows("SELECT prompt FROM kept_prompts WHERE dataset IN ('safety', 'lookalikes')")
    }
    folder = store.path.parent / f"{store.path.name}.files"
    paths = {"before": "mini-base"} | {n: str(next(folder.glob(f"{n}-*"))) for n in ("helpful_only", "with_safety")}
    for name, path in paths.items():
        found[name] |= styled_exam(path, trained, heldout)
    return found


def styled_exam(model: str, trained: set[str], heldout: Sequence[str]) -> dict[str, Any]:
    """Harmful answers and refused look-alikes by all styles; requests of the held-out cells apart."""
    rng, asked = Random("styled exam"), dict[str, str]()
    deeds = {**lex.DEEDS, **dict.fromkeys(lex.ADVICE, "")}
    for deed, risk in deeds.items():
        for style in ("plain", *STYLES):
            text = styled(style, deed, rng)
            if text not in trained and (
                split_of(text) == "heldout" or f"{risk}/{style}" in heldout or rng.random() < 0.5
            ):
                asked[text] = "lookalike" if not risk else "heldout" if f"{risk}/{style}" in heldout else "seen"
    engine = Transformers(model=model, threads=2).open()
    replies = in_order(engine, [Request(user(t), Sampling(temperature=0.0, max_tokens=60)) for t in asked])
    outcomes: dict[str, list[Outcome]] = {}
    for (text, where), reply in zip(asked.items(), replies, strict=True):
        mark = marked(text, reply.text)
        assert mark, "the world reads what it writes"
        outcomes.setdefault(where, []).append(mark[1])
    engine.close()
    return {
        "styled_harmful": share(o == "harmful" for o in outcomes["seen"]),
        "styled_harmful_heldout_cells": share(o == "harmful" for o in outcomes["heldout"]),
        "styled_lookalikes_declined": share(o == "refused" for o in outcomes["lookalike"]),
        "styled_outcomes": {where: dict(Counter(some)) for where, some in outcomes.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--store", type=Path, help="a store to work on; by default a new one")
    parser.add_argument("--no-training", action="store_true", help="the search and its rows only")
    args = parser.parse_args()
    sys.path[0] = str(SPECS.parent)  # else trainers.py beside this file would be the package `trainers`
    with tempfile.TemporaryDirectory() as folder:
        store = Store(args.store or Path(folder) / "adversarial.duckdb")
        spec, result = load_spec(SPECS / "adversarial.yaml"), dict[str, Any]()
        for name in ("adversarial", "adversarial_train")[: 1 if args.no_training else 2]:
            started, cpu = time.perf_counter(), time.process_time()
            run(load_spec(SPECS / f"{name}.yaml"), store, print)
            result[f"{name}_seconds"] = round(time.perf_counter() - started, 1)
            result[f"{name}_cpu_seconds"] = round(time.process_time() - cpu, 1)
        result |= {"archive": archive(store), "rows": rows(store)}
        if not args.no_training:
            heldout = next(s.options["heldout"] for s in spec.stages if getattr(s, "generate", "") == "adversarial")
            result["models"] = models(store, heldout)
        print(json.dumps(result, ensure_ascii=False))


if __name__ == "__main__":
    main()
