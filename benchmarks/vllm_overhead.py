"""What the streaming `vllm` engine, and the journal around it, cost beside a bare `LLM.generate` of the same prompts.

Three sides: `bare`; `engine`, the factory's engine alone; `factory`, what a run uses: a Journal over the engine, with
every reply in a new store before it is handed on. All use one loaded model and run in turn, forwards and backwards, so
that drift hits all; the prefix cache is emptied before each. The bare call gets its prompts rendered beforehand, the
engine renders them itself. Prints one JSON line per round and a last one with the medians of completion tokens per
second, and their ratios to bare.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from random import Random
from statistics import median
from typing import Any

from factory.engines.base import Engine, Request, Sampling
from factory.engines.journal import Journal
from factory.engines.vllm import Vllm, _sampling
from factory.mini.texts import instruction_writing
from factory.records import user
from factory.store import Store


def requests(number: int) -> list[Request]:
    """What Self-Instruct asks: eight tasks shown, eight wanted; a reply has some hundred tokens."""
    asked = (user_text for user_text, _ in instruction_writing(Random(0)) if user_text.startswith("Come up with"))
    sampling = Sampling(temperature=1.0, max_tokens=180)
    return [Request(user(text), sampling, seed=i) for i, text in enumerate(islice(asked, number))]


def bare(llm: Any, texts: list[str], asked: list[Request]) -> tuple[int, float]:
    """Completion tokens, and seconds, of one `LLM.generate`."""
    started = time.perf_counter()
    outputs = llm.generate(texts, [_sampling(r) for r in asked], use_tqdm=False)
    return sum(len(o.outputs[0].token_ids) for o in outputs), time.perf_counter() - started


def streamed(engine: Engine, asked: list[Request]) -> tuple[int, float, float]:
    """Completion tokens, seconds, and seconds to the first reply, of an engine."""
    started = time.perf_counter()
    tokens, first = 0, 0.0
    for reply in engine.generate(asked):
        first = first or time.perf_counter() - started
        tokens += reply.completion_tokens
    return tokens, time.perf_counter() - started, first


def journalled(engine: Engine, asked: list[Request]) -> tuple[int, float, float]:
    """The same with a journal in a new store around it."""
    with tempfile.TemporaryDirectory() as folder:
        store = Store(Path(folder) / "bench.duckdb")
        store.prepare()
        return streamed(Journal(engine, store), asked)


def main() -> None:
    """Run the rounds."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="mini-strong")
    parser.add_argument("--prompts", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=3, help="rounds of each kind")
    given = parser.parse_args()
    engine = Vllm(model=given.model, enforce_eager=True).open()
    asked = requests(given.prompts)
    list(engine.generate(asked[:64]))  # loads the model and warms up both
    llm, render = engine._llm, engine._tokenizer.apply_chat_template
    texts = [render(r.messages, tokenize=False, add_generation_prompt=True) for r in asked]
    sides: dict[str, Callable[[], tuple[float, ...]]] = {
        "bare": lambda: bare(llm, texts, asked),
        "engine": lambda: streamed(engine, asked),
        "factory": lambda: journalled(engine, asked),
    }
    speeds: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(given.rounds):
        for name in list(sides)[:: -1 if turn % 2 else 1]:
            llm.reset_prefix_cache()
            tokens, seconds, *first = sides[name]()
            speeds[name].append(tokens / seconds)
            told = {"run": name, "tokens": tokens, "seconds": round(seconds, 2)}
            print(json.dumps(told | {"first_reply": [round(s, 2) for s in first]}), flush=True)
    engine.close()
    middle = {name: median(all_) for name, all_ in speeds.items()}
    ratios = {f"{name}/bare": round(middle[name] / middle["bare"], 4) for name in ("engine", "factory")}
    print(json.dumps({name: round(speed) for name, speed in middle.items()} | ratios))


if __name__ == "__main__":
    main()
