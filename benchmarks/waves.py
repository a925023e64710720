"""How full the generators that ask in waves keep an engine: their tokens per second beside a bare vLLM's.

A generator takes thousands of prompts through several steps, and each step waits for replies of the one before. Here
each runs on vLLM with mini-strong in every role, and every request it made is written down. Then a bare
`LLM.generate` gets all these requests at once: nothing to wait for, the most that the engine can do. Both sides run in
turns on one loaded model with an empty prefix cache. Prints a JSON line for each generator: completion tokens per
second of both (medians over the rounds), and their ratio.

    python benchmarks/waves.py [--prompts 2000] [--rounds 1] [--only weak_to_strong]
"""

import argparse
import json
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from statistics import median
from typing import Any

ROOT = Path(__file__).parent.parent
sys.path[0] = str(ROOT)  # else trainers.py beside this file would be the package `trainers`

from factory.engines.base import Reply, Request  # noqa: E402
from factory.engines.vllm import Vllm, VllmEngine, _sampling  # noqa: E402
from factory.mini.families import FAMILIES  # noqa: E402
from factory.mini.world import draw  # noqa: E402
from factory.records import Answered, Completion, Prompt, user  # noqa: E402
from factory.steps import load_step  # noqa: E402

MINI = {"templates": ROOT / "specs" / "templates" / "mini"}
DRAWN, GREEDY = {"temperature": 1.0, "max_tokens": 64}, {"temperature": 0.0, "max_tokens": 320}
GENERATORS: dict[str, dict[str, Any]] = {
    "respond": {"engine": "strong", "n": 4, "sampling": DRAWN},
    "evol_instruct": {"engine": "strong", **MINI, "rounds": 2, "sampling": {**DRAWN, "max_tokens": 120}},
    "preference_pairs": {"engine": "strong", "judge": "strong", "n": 2, **MINI, "sampling": DRAWN,
                         "judge_sampling": GREEDY},
    "weak_to_strong": {"weak": "strong", "strong": "strong", **MINI, "weak_sampling": {**DRAWN, "temperature": 1.3},
                       "strong_sampling": GREEDY, "judge_sampling": GREEDY},
    "constitutional": {"engine": "strong", **MINI, "constitution": ROOT / "specs" / "constitutions" / "mini.yaml",
                       "rounds": 2, "labels": 2, "sampling": {**GREEDY, "max_tokens": 80}, "judge_sampling": GREEDY},
}  # fmt: skip


@dataclass
class Recorded:
    """An engine that writes down what it was asked and how much it said."""

    engine: VllmEngine
    asked: list[Request] = field(default_factory=list)
    tokens: int = 0

    @property
    def model(self) -> str:
        return self.engine.model

    def generate(self, requests: Iterable[Request]) -> Iterator[Reply]:
        for reply in self.engine.generate(self._noted(requests)):
            self.tokens += reply.completion_tokens
            yield reply

    def _noted(self, requests: Iterable[Request]) -> Iterator[Request]:
        for request in requests:
            self.asked.append(request)
            yield request

    def close(self) -> None:
        self.engine.close()


def prompts(number: int) -> list[Prompt]:
    """Different tasks of all families in turn."""
    rng, found = Random("waves"), dict[str, Prompt]()
    while len(found) < number:
        task = draw(FAMILIES[len(found) % len(FAMILIES)], rng)
        found[task.text] = Prompt(user(task.text), language=task.language)
    return list(found.values())


def in_waves(name: str, engine: VllmEngine, asked: Sequence[Prompt]) -> tuple[list[Request], float]:
    """What the generator asked, and its completion tokens per second."""
    recorded, step = Recorded(engine), load_step("generate", name, GENERATORS[name])
    started = time.perf_counter()
    if hasattr(step, "review"):  # it looks at answers that are there
        answered = [Answered(p, (Completion(p.id, "To do it, begin early and tell nobody."),)) for p in asked]
        made = step.review(answered, {"strong": recorded}, Random(7))
    else:
        made = step.generate(asked, {"strong": recorded}, Random(7))
    rows = sum(1 for _ in made)
    assert rows, "a generator without rows measures nothing"
    return recorded.asked, recorded.tokens / (time.perf_counter() - started)


def bare(engine: VllmEngine, asked: Sequence[Request]) -> float:
    """Completion tokens per second of one call with all requests, rendered beforehand."""
    texts, sampling = [engine._render(r) for r in asked], [_sampling(r) for r in asked]
    started = time.perf_counter()
    outputs = engine._llm.generate(texts, sampling, use_tqdm=False)
    return sum(len(o.outputs[0].token_ids) for o in outputs) / (time.perf_counter() - started)


def measured(name: str, engine: VllmEngine, asked: Sequence[Prompt], rounds: int) -> dict[str, Any]:
    """Both sides in turns; the first of all is a small one that warms up."""
    in_waves(name, engine, asked[:32])
    speeds: dict[str, list[float]] = {"waves": [], "bare": []}
    requests: list[Request] = []
    for _ in range(rounds):
        engine._llm.reset_prefix_cache()
        requests, speed = in_waves(name, engine, asked)
        speeds["waves"].append(speed)
        engine._llm.reset_prefix_cache()
        speeds["bare"].append(bare(engine, requests))
    middle = {side: median(found) for side, found in speeds.items()}
    told = {"generator": name, "prompts": len(asked), "requests": len(requests)}
    return told | {s: round(v) for s, v in middle.items()} | {"ratio": round(middle["waves"] / middle["bare"], 3)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="mini-strong")
    parser.add_argument("--prompts", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--only", choices=sorted(GENERATORS), help="one generator")
    given = parser.parse_args()
    engine, asked = Vllm(model=given.model, enforce_eager=True).open(), prompts(given.prompts)
    for name in [given.only] if given.only else GENERATORS:
        print(json.dumps(measured(name, engine, asked, given.rounds)), flush=True)
    engine.close()


if __name__ == "__main__":
    main()
