"""What the journalled, streaming `vllm` engine costs beside a bare `LLM.generate` of the same prompts.

The factory's side is what a run uses: a Journal over the engine, with every reply in a new store before it is handed
on. Both sides use one loaded model and run in turn, A B B A A B ..., so that drift hits both; the prefix cache is
emptied before each. The bare call gets its prompts rendered beforehand, the engine renders them itself. Prints one JSON
line per round and a last one with the ratio of the medians (factory / bare, in completion tokens per second).
"""

import argparse
import json
import tempfile
import time
from pathlib import Path
from random import Random
from statistics import median
from typing import Any

from factory.engines.base import Request, Sampling
from factory.engines.journal import Journal
from factory.engines.vllm import Vllm, VllmEngine, _sampling
from factory.records import user
from factory.store import Store


def requests(number: int) -> list[Request]:
    """Chats of 10 to 60 words with replies of 8 to 120 tokens."""
    rng = Random(0)
    words = "the old lamp counts seven green birds and 请 把 这 句话 翻译 成 英文 then sorts them by name".split()
    return [
        Request(
            user(" ".join(rng.choices(words, k=rng.randint(10, 60)))), Sampling(max_tokens=rng.randint(8, 120)), seed=i
        )
        for i in range(number)
    ]


def bare(llm: Any, texts: list[str], asked: list[Request]) -> tuple[int, float]:
    """Completion tokens, and seconds, of one `LLM.generate`."""
    started = time.perf_counter()
    outputs = llm.generate(texts, [_sampling(r) for r in asked], use_tqdm=False)
    return sum(len(o.outputs[0].token_ids) for o in outputs), time.perf_counter() - started


def journalled(engine: VllmEngine, asked: list[Request]) -> tuple[int, float, float]:
    """Completion tokens, seconds, and seconds to the first reply, of the engine with a journal in a new store."""
    with tempfile.TemporaryDirectory() as folder:
        store = Store(Path(folder) / "bench.duckdb")
        store.prepare()
        started = time.perf_counter()
        tokens, first = 0, 0.0
        for reply in Journal(engine, store).generate(asked):
            first = first or time.perf_counter() - started
            tokens += reply.completion_tokens
        return tokens, time.perf_counter() - started, first


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
    speeds: dict[str, list[float]] = {"bare": [], "factory": []}
    for name in [n for i in range(given.rounds) for n in (("bare", "factory") if i % 2 == 0 else ("factory", "bare"))]:
        llm.reset_prefix_cache()
        tokens, seconds, *first = bare(llm, texts, asked) if name == "bare" else journalled(engine, asked)
        speeds[name].append(tokens / seconds)
        print(
            json.dumps(
                {
                    "run": name,
                    "tokens": tokens,
                    "seconds": round(seconds, 2),
                    "first_reply": [round(f, 2) for f in first],
                }
            ),
            flush=True,
        )
    engine.close()
    ratio = median(speeds["factory"]) / median(speeds["bare"])
    print(json.dumps({k: round(median(v)) for k, v in speeds.items()} | {"ratio": round(ratio, 4)}))


if __name__ == "__main__":
    main()
