"""The client against a real HTTP server on the loopback, which answers as each test says."""

import json
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from decimal import Decimal
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from factory.engines.base import Reply, Request, Sampling
from factory.engines.openai import Openai, _Gate
from factory.errors import EngineError, SpecError
from factory.records import Message, user

CANARY = "sk-canary-8f31c0de"
Answer = tuple[int, dict[str, str], object]  # status, headers, body: JSON, or text as it is
Script = Callable[[dict[str, Any], int], Answer]


class _Server(ThreadingHTTPServer):
    """Answers the n-th call (from 1) with `script(body, n)`; remembers what was asked."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, script: Script) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.script = script
        self.calls: list[tuple[str, dict[str, Any], str]] = []
        self.lock, self.now, self.most = threading.Lock(), 0, 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that hangs up early is part of the tests."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def do_POST(self) -> None:
        server = self.server
        asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
        with server.lock:
            server.calls.append((self.path, asked, self.headers["authorization"]))
            number = len(server.calls)
            server.now += 1
            server.most = max(server.most, server.now)
        try:
            status, headers, body = server.script(asked, number)
        finally:
            with server.lock:
                server.now -= 1
        sent = (body if isinstance(body, str) else json.dumps(body)).encode()
        self.send_response(status)
        for name, value in ({"content-type": "application/json", "content-length": str(len(sent))} | headers).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(sent)

    def log_message(self, format: str, *args: object) -> None:
        """Silence."""


@pytest.fixture
def serve() -> Iterator[Callable[[Script], _Server]]:
    running: list[_Server] = []

    def start(script: Script) -> _Server:
        server = _Server(script)
        running.append(server)
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return server

    yield start
    for server in running:
        server.shutdown()
        server.server_close()


def _said(text: str | None, finish_reason: str = "stop", **message: object) -> Answer:
    choice = {"index": 0, "message": {"role": "assistant", "content": text} | message, "finish_reason": finish_reason}
    usage = {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}
    return 200, {}, {"id": "x", "object": "chat.completion", "choices": [choice], "usage": usage}


def _said_after(seconds: float) -> Answer:
    time.sleep(seconds)
    return _said("ok")


def _error(status: int, message: str = "told by the server", **headers: str) -> Answer:
    return status, {k.replace("_", "-"): v for k, v in headers.items()}, {"error": {"message": message}}


def _ask(server: _Server, *requests: Request, **options: Any) -> list[Reply]:
    engine = Openai(model="m", base_url=server.url, **options).open()
    try:
        return list(engine.generate(requests))
    finally:
        engine.close()


def _requests(n: int) -> list[Request]:
    return [Request(user(f"question {i}"), seed=i) for i in range(n)]


def test_a_chat_is_sent_with_its_sampling_and_read_with_its_usage(serve: Callable[[Script], _Server]) -> None:
    server = serve(lambda asked, n: _said("好的"))
    sampling = Sampling(temperature=0.5, top_p=0.9, top_k=20, max_tokens=64, presence_penalty=0.25, stop=("\n",))
    prices = {"usd_per_million_prompt_tokens": "0.15", "usd_per_million_completion_tokens": "0.6"}
    [reply] = _ask(server, Request(user("你好"), sampling, seed=11), **prices, extra_body={"min_p": 0.1})
    path, asked, key = server.calls[0]
    assert (path, key) == ("/v1/chat/completions", "Bearer no-key")
    assert asked == {
        "model": "m", "messages": [{"role": "user", "content": "你好"}], "temperature": 0.5, "top_p": 0.9, "top_k": 20,
        "max_tokens": 64, "presence_penalty": 0.25, "stop": ["\n"], "seed": 11, "min_p": 0.1,
    }  # fmt: skip
    assert (reply.text, reply.finish_reason, reply.prompt_tokens, reply.completion_tokens) == ("好的", "stop", 7, 3)
    assert reply.usd == Decimal("0.00000285")
    assert reply.latency > 0


def test_an_answer_that_was_begun_is_sent_as_one_to_go_on_with(serve: Callable[[Script], _Server]) -> None:
    server = serve(lambda asked, n: _said("Answer: 7"))
    [reply] = _ask(server, Request((*user("3 + 4?"), Message("assistant", "3 + 4 = 7\n"))))
    asked = server.calls[0][1]
    assert asked["messages"][-1] == {"role": "assistant", "content": "3 + 4 = 7\n"}
    assert (asked["continue_final_message"], asked["add_generation_prompt"]) == (True, False)
    assert reply.text == "Answer: 7"
    _ask(server, *_requests(1))
    assert "continue_final_message" not in server.calls[1][1], "a question is answered"


def test_top_k_is_not_sent_where_it_is_off(serve: Callable[[Script], _Server]) -> None:
    server = serve(lambda asked, n: _said("yes"))
    _ask(server, *_requests(1))
    assert "top_k" not in server.calls[0][1]


def test_raw_text_goes_to_the_completions_endpoint(serve: Callable[[Script], _Server]) -> None:
    choice = {"index": 0, "text": " was a king", "finish_reason": "length"}
    server = serve(lambda asked, n: (200, {}, {"choices": [choice], "usage": {"prompt_tokens": 2}}))
    [reply] = _ask(server, Request("There once", Sampling(max_tokens=4)))
    path, asked, _ = server.calls[0]
    assert (path, asked["prompt"], asked["max_tokens"]) == ("/v1/completions", "There once", 4)
    assert (reply.text, reply.finish_reason, reply.prompt_tokens) == (" was a king", "length", 2)


def test_a_schema_is_sent_as_a_response_format(serve: Callable[[Script], _Server]) -> None:
    server = serve(lambda asked, n: _said("{}"))
    bad, good = _ask(
        server,
        Request(user("a"), Sampling(schema="{no json")),
        Request(user("b"), Sampling(schema='{"type": "object"}')),
        concurrency=1,
    )
    assert bad.finish_reason == "error"
    assert "cannot be sent" in bad.error
    assert good.text == "{}"
    assert server.calls[0][1]["response_format"]["json_schema"]["schema"] == {"type": "object"}


@pytest.mark.parametrize(
    ("answer", "text", "finished"),
    [
        (_said("cut", "length"), "cut", "length"),
        (_said("", "content_filter"), "", "content_filter"),
        (_said(None, refusal="I must decline."), "I must decline.", "content_filter"),
        (_said(None), "", "stop"),
        (_said("done", "tool_calls"), "done", "stop"),
        (_said([{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]), "ab", "stop"),  # type: ignore[arg-type]
    ],
)
def test_finish_reasons_refusals_and_empty_contents_are_read(
    serve: Callable[[Script], _Server], answer: Answer, text: str, finished: str
) -> None:
    [reply] = _ask(serve(lambda asked, n: answer), *_requests(1))
    assert (reply.text, reply.finish_reason) == (text, finished)


@pytest.mark.parametrize(
    ("trouble", "least"),
    [
        (_error(429, retry_after="1"), 1.0),
        (_error(500), 0.0),
        (_error(503, retry_after_ms="300"), 0.3),
        ((200, {}, '{"choices": [{"mess'), 0.0),
        ((200, {"content-type": "text/html"}, "<html>a gateway</html>"), 0.0),
        ((200, {}, {"choices": []}), 0.0),
    ],
)
def test_passing_trouble_is_tried_again_after_the_wait_the_server_asks_for(
    serve: Callable[[Script], _Server], trouble: Answer, least: float
) -> None:
    server = serve(lambda asked, n: trouble if n == 1 else _said("at last"))
    started = time.monotonic()
    [reply] = _ask(server, *_requests(1))
    assert (reply.text, len(server.calls)) == ("at last", 2)
    assert time.monotonic() - started >= least


def test_a_slow_answer_is_given_up_and_asked_again(serve: Callable[[Script], _Server]) -> None:
    def slow_once(asked: dict[str, Any], n: int) -> Answer:
        time.sleep(1.0 if n == 1 else 0)
        return _said("quick")

    server = serve(slow_once)
    [reply] = _ask(server, *_requests(1), timeout=0.2)
    assert (reply.text, len(server.calls)) == ("quick", 2)
    assert reply.latency < 0.9


@pytest.mark.parametrize("status", [400, 413, 422])
def test_a_bad_request_is_an_error_reply_and_the_others_are_answered(
    serve: Callable[[Script], _Server], status: int
) -> None:
    def script(asked: dict[str, Any], n: int) -> Answer:
        return _error(status, "too long") if asked["seed"] == 3 else _said("fine")

    server = serve(script)
    replies = {r.request.seed: r for r in _ask(server, *_requests(6))}
    assert {s for s, r in replies.items() if r.finish_reason == "error"} == {3}
    assert replies[3].error == f"{status}: too long"
    assert len(server.calls) == 6  # it is not tried again


def test_one_request_that_is_never_served_is_an_error_reply_while_others_are_answered(
    serve: Callable[[Script], _Server],
) -> None:
    def script(asked: dict[str, Any], n: int) -> Answer:
        time.sleep(0.2 if asked["seed"] == 0 else 0)
        return _error(504, "too slow") if asked["seed"] == 0 else _said("fine")

    replies = {r.request.seed: r for r in _ask(serve(script), *_requests(20), max_retries=0, concurrency=4)}
    assert len(replies) == 20
    assert "504: too slow" in replies[0].error
    assert {r.text for s, r in replies.items() if s} == {"fine"}


def test_one_request_that_crashes_the_server_does_not_end_the_run_but_a_row_of_them_does(
    serve: Callable[[Script], _Server],
) -> None:
    server = serve(lambda asked, n: _error(500, "crash"))
    [reply] = _ask(server, *_requests(1), max_retries=0)
    assert "failed 1 times: 500: crash" in reply.error
    with pytest.raises(EngineError, match="500: crash"):
        _ask(server, *_requests(4), max_retries=0)


def test_a_server_that_only_fails_ends_the_run_with_its_name(serve: Callable[[Script], _Server]) -> None:
    server = serve(lambda asked, n: _error(502, "bad gateway"))
    with pytest.raises(EngineError, match=r"127\.0\.0\.1:\d+ failed 2 times: 502: bad gateway.*run again"):
        _ask(server, *_requests(3), max_retries=1)


def test_a_server_that_is_not_there_is_named_with_the_mend() -> None:
    engine = Openai(model="m", base_url="http://127.0.0.1:9/v1", max_retries=1).open()
    with pytest.raises(EngineError, match=r"127\.0\.0\.1:9 failed 2 times: no connection.*See that the server runs"):
        list(engine.generate(_requests(1)))
    engine.close()


def test_an_unknown_model_names_the_model_and_the_path(serve: Callable[[Script], _Server]) -> None:
    with pytest.raises(EngineError, match=r"cannot serve model 'm' at /v1 \(404: no such model\)"):
        _ask(serve(lambda asked, n: _error(404, "no such model")), *_requests(1))


@pytest.mark.parametrize("status", [401, 403, 429, 500, 400])
def test_the_key_is_sent_and_never_shown(
    serve: Callable[[Script], _Server], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, status: int
) -> None:
    monkeypatch.setenv("TEST_KEY", f"{CANARY}\n")  # as read from a file
    server = serve(lambda asked, n: _error(status, f"Incorrect API key provided: {CANARY}"))
    caplog.set_level("DEBUG")
    options = Openai(model="m", base_url=server.url, api_key_env="TEST_KEY", max_retries=0)
    engine = options.open()
    shown = repr(options) + repr(engine) + repr(vars(engine))
    try:
        shown += repr(list(engine.generate(_requests(1))))
    except EngineError as error:
        shown += "".join(traceback.TracebackException.from_exception(error, capture_locals=False).format(chain=True))
    engine.close()
    assert server.calls[0][2] == f"Bearer {CANARY}"
    assert "(key)" in shown
    assert ("TEST_KEY; " in shown or "variable TEST_KEY" in shown) or status not in (401, 403)
    assert CANARY not in shown + caplog.text


@pytest.mark.parametrize("value", [None, "", " \n"])
def test_a_key_that_is_not_set_is_an_error_before_anything_is_sent(
    monkeypatch: pytest.MonkeyPatch, value: str | None
) -> None:
    monkeypatch.delenv("TEST_KEY", raising=False)
    if value is not None:
        monkeypatch.setenv("TEST_KEY", value)
    with pytest.raises(SpecError, match="TEST_KEY is not set"):
        Openai(model="m", api_key_env="TEST_KEY").open()


@pytest.mark.parametrize("value", [f"{CANARY}\nx", f"“{CANARY}”"])
def test_a_key_that_no_header_can_hold_is_refused_without_being_shown(
    monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    monkeypatch.setenv("TEST_KEY", value)
    with pytest.raises(SpecError, match="TEST_KEY holds characters that no key has") as told:
        Openai(model="m", api_key_env="TEST_KEY").open()
    assert CANARY not in "".join(traceback.format_exception(told.value))


@pytest.mark.parametrize("address", ["localhost:8000/v1", "ftp://host/v1", "http://"])
def test_an_address_that_is_none_is_refused(address: str) -> None:
    with pytest.raises(SpecError, match=r"base_url: .* is no address"):
        Openai(model="m", base_url=address).open()


def test_requests_are_pulled_in_a_bounded_window_and_replies_stream(serve: Callable[[Script], _Server]) -> None:
    server = serve(lambda asked, n: _said_after(0.05))  # long enough for four to meet on a busy machine
    pulled = 0

    def source() -> Iterator[Request]:
        nonlocal pulled
        for pulled, request in enumerate(_requests(100), 1):  # noqa: B007
            yield request

    engine = Openai(model="m", base_url=server.url, concurrency=4).open()
    for taken, _ in enumerate(engine.generate(source()), 1):
        assert pulled <= taken + 2 * 4
    engine.close()
    assert taken == 100
    assert server.most == 4


def test_leaving_early_cancels_what_is_under_way_and_the_engine_lives_on(serve: Callable[[Script], _Server]) -> None:
    def script(asked: dict[str, Any], n: int) -> Answer:
        if asked["seed"] == 1:
            time.sleep(30)
        return _said("ok")

    server = serve(script)
    engine = Openai(model="m", base_url=server.url, concurrency=2).open()
    replies = engine.generate(_requests(50))
    assert next(replies).request.seed != 1
    started = time.monotonic()
    replies.close()  # type: ignore[attr-defined]
    time.sleep(0.2)
    asked = len(server.calls)
    time.sleep(0.2)
    assert len(server.calls) == asked < 50
    assert [r.text for r in engine.generate([Request(user("again"), seed=7)])] == ["ok"]
    engine.close()
    engine.close()  # twice does no harm
    assert time.monotonic() - started < 10
    assert not [t for t in threading.enumerate() if t.name == "openai-engine"]


def test_what_the_callers_source_raises_travels_to_the_caller(serve: Callable[[Script], _Server]) -> None:
    def source() -> Iterator[Request]:
        yield from _requests(2)
        raise LookupError("the caller's own")

    engine = Openai(model="m", base_url=serve(lambda asked, n: _said("ok")).url).open()
    with pytest.raises(LookupError, match="the caller's own"):
        list(engine.generate(source()))
    engine.close()


def test_closing_while_replies_are_awaited_says_so(serve: Callable[[Script], _Server]) -> None:
    server = serve(lambda asked, n: _said_after(3 if asked["seed"] else 0))
    engine = Openai(model="m", base_url=server.url).open()
    replies = engine.generate(_requests(3))
    next(replies)
    engine.close()
    with pytest.raises(EngineError, match="was closed with requests under way"):
        list(replies)


def test_a_crowded_server_is_asked_less_and_then_answers_all(serve: Callable[[Script], _Server]) -> None:
    server: _Server

    def script(asked: dict[str, Any], n: int) -> Answer:
        if server.now > 8:
            return _error(429, "slow down", retry_after_ms="20")
        time.sleep(0.01)
        return _said("ok")

    server = serve(script)
    replies = _ask(server, *_requests(200), concurrency=12)
    assert [r.finish_reason for r in replies] == ["stop"] * 200
    refused = len(server.calls) - 200
    assert 0 < refused < 100


def test_the_limit_falls_by_a_quarter_once_per_burst_and_climbs_back_by_ones() -> None:
    gate = _Gate(64)
    for now in (10.0, 10.5, 11.9):
        gate.crowded(now, 0.0)
    assert gate.limit == 48
    gate.crowded(12.1, 0.0)
    assert gate.limit == 36
    for _ in range(50):
        gate.answered()
    assert gate.limit == 38
    for _ in range(25 * 100):
        gate.answered()
    assert gate.limit == 64


def test_the_name_tells_when_further_fields_change_what_is_said() -> None:
    plain = Openai(model="m", base_url="http://h/v1").open()
    thinking = Openai(model="m", base_url="http://h/v1", extra_body={"reasoning_effort": "high"}).open()
    assert plain.model == "m"
    assert thinking.model.startswith("m+")
