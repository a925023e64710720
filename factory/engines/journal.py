"""The journal wraps any engine: every reply is stored under a content key before anyone may use it.

That one table is the cache, the audit trail, the cost ledger and what a killed run resumes from.
"""

import json
import time
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import asdict, replace
from itertools import islice
from typing import Any

from factory.engines.base import Engine, Reply, Request
from factory.records import content_id
from factory.store import Store

COMMIT_ROWS, COMMIT_SECONDS = 256, 1.0  # a kill loses at most what came in since the last commit
LOOKUP_ROWS = 512

_FOUND = """
SELECT "key", reply, finish_reason, prompt_tokens, completion_tokens, max_tokens FROM (
    SELECT * FROM calls WHERE "key" IN (SELECT unnest(?)) AND error = ''
    QUALIFY row_number() OVER (PARTITION BY "key" ORDER BY max_tokens DESC, created_at DESC) = 1)
"""


class Journal:
    """An engine whose replies are all stored, and that never asks again what the store can answer."""

    def __init__(self, engine: Engine, store: Store, run_id: str = "") -> None:
        self.engine = engine
        self.store = store
        self.run_id = run_id
        store.prepare()

    @property
    def model(self) -> str:
        return self.engine.model

    def generate(self, requests: Iterable[Request]) -> Iterator[Reply]:
        """Stored replies first come, new ones as their batch is committed. An error reply is never reused."""
        ready: deque[Reply] = deque()  # found in the store, to be handed on at the next chance
        fresh: list[Reply] = []
        committed = time.monotonic()
        try:
            for reply in self.engine.generate(self._unanswered(requests, ready)):
                fresh.append(replace(reply, key=self._key(reply.request)))
                if len(fresh) >= COMMIT_ROWS or time.monotonic() - committed > COMMIT_SECONDS:
                    done, fresh, committed = fresh, [], time.monotonic()
                    yield from self._committed(done)
                while ready:
                    yield ready.popleft()
        finally:  # also when the engine dies or the caller stops early: what was paid for is kept
            self._committed(fresh)
        yield from fresh
        yield from ready

    def close(self) -> None:
        self.engine.close()

    def _key(self, request: Request) -> str:
        return content_id("call", self.model, request.id)

    def _unanswered(self, requests: Iterable[Request], ready: deque[Reply]) -> Iterator[Request]:
        """Pass on the requests that the store cannot answer; its answers go to `ready`."""
        if not self.store.rows("SELECT 1 FROM calls WHERE model = ? LIMIT 1", [self.model]):
            yield from requests  # this model was never asked anything: there is nothing to look up
            return
        source, some = iter(requests), 1
        while chunk := list(islice(source, some)):
            some = LOOKUP_ROWS  # the first chunk is small, so that an engine starts at once
            found = {row[0]: row for row in self.store.rows(_FOUND, [[self._key(r) for r in chunk]])}
            for request in chunk:
                row = found.get(self._key(request))
                if row and _answers(row, request):
                    ready.append(_reply(row, request))
                else:
                    yield request

    def _committed(self, replies: list[Reply]) -> list[Reply]:
        if replies:
            self.store.append_rows("calls", [_row(r, self.model, self.run_id) for r in replies])
        return replies


def _answers(row: tuple[Any, ...], request: Request) -> bool:
    """A stored reply serves unless it was cut by a smaller limit, or is longer than what is asked for now."""
    finish_reason, tokens, limit = row[2], row[4], row[5]
    if finish_reason == "length":
        return bool(limit == request.sampling.max_tokens)
    return bool(tokens <= request.sampling.max_tokens)


def _reply(row: tuple[Any, ...], request: Request) -> Reply:
    key, text, finish_reason, prompt_tokens, completion_tokens, _ = row
    return Reply(request, text, finish_reason, prompt_tokens, completion_tokens, key=key)


def _row(reply: Reply, model: str, run_id: str) -> dict[str, Any]:
    request = reply.request
    asked: dict[str, Any] = {"prompt": request.prompt if isinstance(request.prompt, str) else request.messages}
    asked |= {"sampling": asdict(request.sampling), "seed": request.seed}
    return {
        "key": reply.key,
        "model": model,
        "request": json.dumps(asked, ensure_ascii=False),
        "max_tokens": request.sampling.max_tokens,
        "reply": reply.text,
        "finish_reason": reply.finish_reason,
        "prompt_tokens": reply.prompt_tokens,
        "completion_tokens": reply.completion_tokens,
        "usd": reply.usd,
        "latency": reply.latency,
        "error": reply.error,
        "meta": json.dumps(dict(reply.meta)),
        "run_id": run_id,
    }
