"""A small spec over the scripted engine that runs the whole line up to training, for tests of runs."""

import json
from pathlib import Path
from random import Random
from typing import Any

import yaml

from factory.mini.families import FAMILIES
from factory.mini.world import draw

ROOT = Path(__file__).parent.parent


def scripted_spec(folder: Path, accept: int = 150, n: int = 3, **engine: Any) -> Path:
    """Write a spec and its seeds: Self-Instruct by canned replies, filters, answers, an audit."""
    rng = Random(5)
    tasks = [f for f in FAMILIES if f.kind == "task"]

    def listed() -> str:
        return "\n".join(f"{i}. {draw(rng.choice(tasks), rng).instruction}" for i in range(9, 17))

    def instances() -> str:
        words = [" ".join(rng.sample(["cat", "dog", "owl", "fox", "hat", "cup"], 3)) for _ in range(2)]
        return "\n\n".join(f"Example {i}\nInput: {w}\nOutput: {w[::-1]}" for i, w in enumerate(words, 1))

    replies = {
        "^Come up with": [listed() for _ in range(64)],
        "^Is this a classification": "No",
        "^Give examples": [instances() for _ in range(16)],
    }
    spec = {
        "name": "scripted",
        "seed": 3,
        "engines": {"strong": {"use": "scripted", "replies": replies, **engine}},
        "stages": [
            {"import": str(ROOT / "specs/seeds/mini.jsonl"), "into": "seeds"},
            {
                "generate": "self_instruct",
                "from": "seeds",
                "into": "tasks",
                "with": {
                    "engine": "strong",
                    "accept": accept,
                    "round_requests": 8,
                    "rouge": 0.9,
                    "templates": str(ROOT / "specs/templates/mini"),
                },
            },
            {"filter": "exact", "on": "tasks"},
            {"filter": "minhash", "on": "tasks", "with": {"threshold": 0.8}},
            {"generate": "respond", "from": "tasks", "into": "answers", "with": {"engine": "strong", "n": n}},
            {"filter": "denoise", "on": "answers"},
            {"audit": ["no_orphans", "lineage_unbroken", "calls_verified"]},
        ],
    }
    path = folder / "spec.yaml"
    path.write_text(yaml.safe_dump(json.loads(json.dumps(spec)), sort_keys=False, allow_unicode=True))
    return path


CONTENT = {
    "prompts": "SELECT * EXCLUDE (run_id, created_at) FROM prompts ORDER BY rowid",
    "completions": "SELECT * EXCLUDE (run_id, created_at) FROM completions ORDER BY rowid",
    "verdicts": "SELECT * EXCLUDE (run_id, created_at) FROM verdicts ORDER BY rowid",
    "calls": 'SELECT "key", reply FROM calls ORDER BY "key"',
}
