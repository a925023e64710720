"""A deterministic engine for tests and dry runs, shipped like the others. It answers by rules, and fails on order."""

import re
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from hashlib import blake2b
from itertools import cycle

from factory.engines.base import Reply, Request
from factory.errors import EngineError
from factory.options import step


@step
class Scripted:
    """Answers by the first pattern that the prompt matches, else with a text made from the request's hash."""

    model: str = "scripted"
    """The name that the store shows for it."""
    replies: dict[str, str | list[str]] = field(default_factory=dict)
    """Regular expression to reply, or to several replies of which the seed picks one. `\\1` inserts a group."""
    latency: float = 0.0
    """Seconds that each reply takes."""
    error_every: int = 0
    """Every k-th request is answered with an error (0: none)."""
    truncate_every: int = 0
    """Every k-th reply is cut in the middle, with finish_reason "length" (0: none)."""
    die_after: int = 0
    """The engine dies after this many replies (0: it lives)."""
    shuffle: int = 1
    """Replies come in a mixed order within windows of this many requests."""

    def open(self) -> "ScriptedEngine":
        """The running engine."""
        rules = tuple((re.compile(p, re.DOTALL), [r] if isinstance(r, str) else r) for p, r in self.replies.items())
        return ScriptedEngine(self.model, rules, self)


@dataclass(frozen=True)
class ScriptedEngine:
    """See Scripted. `calls` counts what was really asked, for tests of caches."""

    model: str
    rules: tuple[tuple[re.Pattern[str], list[str]], ...]
    faults: Scripted

    def generate(self, requests: Iterable[Request]) -> Iterator[Reply]:
        window: list[Reply] = []
        for count, request in enumerate(requests, 1):
            window.append(self._answer(request, count))
            if self.faults.latency:
                time.sleep(self.faults.latency)
            if len(window) >= self.faults.shuffle:
                yield from reversed(window)
                window = []
            if self.faults.die_after and count >= self.faults.die_after:
                raise EngineError(f"the scripted engine died after {count} replies, as its options say")
        yield from reversed(window)

    def close(self) -> None:
        """Nothing is held."""

    def _answer(self, request: Request, count: int) -> Reply:
        if self.faults.error_every and count % self.faults.error_every == 0:
            return Reply(request, finish_reason="error", error="an error that was asked for")
        asked = request.prompt if isinstance(request.prompt, str) else request.prompt[-1].content
        text = self._text(asked, request)
        words = len(asked.split()), len(text.split())
        if self.faults.truncate_every and count % self.faults.truncate_every == 0:
            return Reply(request, text[: len(text) // 2], "length", *words)
        return Reply(request, text, "stop", *words)

    def _text(self, asked: str, request: Request) -> str:
        for pattern, replies in self.rules:
            if found := pattern.search(asked):
                return found.expand(replies[request.seed % len(replies)])
        digest = blake2b(request.id.encode(), digest_size=8).digest()
        syllables = cycle(("ba", "ko", "li", "mu", "ne", "ro", "ti", "wa"))
        table = [next(syllables) for _ in range(8)]
        return " ".join("".join(table[(b >> s) & 7] for s in (0, 3)) for b in digest).capitalize() + "."
