"""A budget of calls, tokens and dollars around any engine: it stops *before* a limit is passed, never after."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from decimal import Decimal

from pydantic import ConfigDict
from pydantic.dataclasses import dataclass as options

from factory.engines.base import Engine, Reply, Request
from factory.errors import BudgetError


@options(frozen=True, config=ConfigDict(extra="forbid"))
class Limits:
    """The most that a run may spend, over all engines together; None is no limit."""

    calls: int | None = None
    tokens: int | None = None
    usd: Decimal | None = None


@dataclass
class Budget:
    """What a run has spent so far. One budget is shared by all the engines of a run."""

    limits: Limits
    calls: int = 0
    tokens: int = 0
    usd: Decimal = Decimal(0)

    def spend(self, reply: Reply) -> None:
        """Book an answered call."""
        self.calls += 1
        self.tokens += reply.prompt_tokens + reply.completion_tokens
        self.usd += reply.usd

    def room(self, calls: int, tokens: int, usd: Decimal) -> bool:
        """True where this much more still fits."""
        wanted = ((self.limits.calls, self.calls + calls), (self.limits.tokens, self.tokens + tokens))
        fits_money = self.limits.usd is None or self.usd + usd <= self.limits.usd
        return fits_money and all(limit is None or would <= limit for limit, would in wanted)


class Budgeted:
    """An engine that admits a request only if its worst case still fits beside all that are in flight."""

    def __init__(self, engine: Engine, budget: Budget, usd_per_token: Decimal = Decimal(0)) -> None:
        """`usd_per_token` is the dearest price of one token, for the worst case of a request in flight."""
        self.engine = engine
        self.budget = budget
        self.usd_per_token = usd_per_token

    @property
    def model(self) -> str:
        return self.engine.model

    def generate(self, requests: Iterable[Request]) -> Iterator[Reply]:
        """Answer in waves: what fits by its worst case is asked; when the true cost is known, more may fit."""
        source = iter(requests)
        waiting: list[Request] = []
        in_flight: dict[str, int] = {}  # request id -> worst-case tokens

        def admitted() -> Iterator[Request]:
            while request := (waiting.pop() if waiting else next(source, None)):
                worst = _worst_tokens(request)
                total = sum(in_flight.values()) + worst
                if not self.budget.room(len(in_flight) + 1, total, total * self.usd_per_token):
                    waiting.append(request)
                    return
                in_flight[request.id] = worst
                yield request

        while True:
            answered = 0
            for reply in self.engine.generate(admitted()):
                in_flight.pop(reply.request.id, None)
                self.budget.spend(reply)
                answered += 1
                yield reply
            if not waiting:
                return
            if not answered:
                raise BudgetError(self._told())

    def close(self) -> None:
        self.engine.close()

    def _told(self) -> str:
        spent = f"{self.budget.calls} calls, {self.budget.tokens} tokens, {self.budget.usd} usd spent"
        return f"the budget is used up ({spent}): raise `budget` in the spec and run again; all answers are stored"


def _worst_tokens(request: Request) -> int:
    """An upper bound: no tokenizer in use makes more tokens than a text has bytes."""
    texts = [request.prompt] if isinstance(request.prompt, str) else [m.content for m in request.prompt]
    return sum(len(t.encode("utf-8", "replace")) + 16 for t in texts) + request.sampling.max_tokens
