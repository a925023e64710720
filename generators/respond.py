"""`respond`: an engine answers every prompt, n times each, with a seed of its own for every sample."""

from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from random import Random

from pydantic import Field

from factory.engines.base import Engine, Reply, Request, Sampling, in_order
from factory.options import step
from factory.records import Completion, Message, Metric, Prompt, Record, Verdict


@step
class Respond:
    """Answers prompts."""

    engine: str
    """The engine that answers."""
    n: int = Field(default=1, ge=1)
    """Answers per prompt."""
    sampling: Sampling = Sampling()
    """How to draw them: temperature, top_p, top_k, max_tokens, stop, presence_penalty."""
    system: str = ""
    """A system message to put before each conversation that has none."""

    def calls(self, prompts: int) -> int:
        """How many engine calls the given number of prompts causes."""
        return prompts * self.n

    def generate(self, prompts: Iterable[Prompt], engines: Mapping[str, Engine], rng: Random) -> Iterator[Record]:
        """Each prompt, then its answers, in the order of the prompts. An error reply is a verdict with its reason."""
        engine, salt = engines[self.engine], rng.getrandbits(48)
        asked: deque[Prompt] = deque()  # those in flight, oldest first

        def requests() -> Iterator[Request]:
            for prompt in prompts:
                for sample in range(self.n):
                    asked.append(prompt)
                    yield Request(self._conversation(prompt), self.sampling, _seed(salt, prompt, sample))

        answered = failed = 0
        for reply in in_order(engine, requests()):
            prompt = asked.popleft()
            yield prompt
            if reply.finish_reason == "error":
                failed += 1
                yield self._failure(prompt, reply)
            else:
                answered += 1
                yield self._completion(prompt, reply, engine)
        for place, (name, value) in enumerate((("asked", answered + failed), ("answered", answered))):
            yield Metric(f"yield/respond/{name}", value, place)

    def _conversation(self, prompt: Prompt) -> tuple[Message, ...]:
        if self.system and prompt.messages[0].role != "system":
            return (Message("system", self.system), *prompt.messages)
        return prompt.messages

    def _failure(self, prompt: Prompt, reply: Reply) -> Verdict:
        """The verdict is on the call, not on the prompt, whose other answers may be good."""
        call = reply.key or reply.request.id
        return Verdict(call, "respond", False, "engine_error", evidence_id=prompt.id, text=reply.error)

    def _completion(self, prompt: Prompt, reply: Reply, engine: Engine) -> Completion:
        return Completion(
            prompt.id, reply.text.strip(), engine.model, self.engine, asdict(self.sampling), reply.request.seed,
            reply.finish_reason, reply.completion_tokens, call_key=reply.key,
        )  # fmt: skip


def _seed(salt: int, prompt: Prompt, sample: int) -> int:
    """A seed by name, not by place: adding or dropping other prompts leaves this one's answers as they are."""
    return (salt ^ int(prompt.id[:12], 16)) + sample
