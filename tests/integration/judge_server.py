"""A local HTTP server that answers by script, well or badly, and remembers what it was asked."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self

from mrpo.types import AnswerRequest, JudgeRequest

CORRECT = '{"Correct": 1}'  # the judge's text


@dataclass(frozen=True, kw_only=True)
class Received:
    """One request as it arrived."""

    method: str
    path: str
    headers: Mapping[str, str]  # names in lower case
    body: bytes
    at_s: float  # time.monotonic()


@dataclass(frozen=True, kw_only=True)
class Answer:
    """One reply."""

    status: int = 200
    body: bytes = b"{}"
    headers: Mapping[str, str] = field(default_factory=dict)
    delay_s: float = 0.0  # before anything is sent
    stall_s: float = 0.0  # between the headers and the body
    drop: bool = False  # close the connection without a reply


def reply(content: str, **answer: Any) -> Answer:
    """A chat-completions reply with this text."""
    body = {
        "choices": [{"finish_reason": "stop", "message": {"role": "assistant", "content": content}}],
        "usage": {"prompt_tokens": 700, "completion_tokens": 40},
    }
    return Answer(body=json.dumps(body).encode(), **answer)


def marks(*pairs: tuple[int, int]) -> str:
    """The judge's text for (alignment, contribution) of each step."""
    return json.dumps({f"step{k}": {"Alignment": a, "Contribution": c} for k, (a, c) in enumerate(pairs, 1)})


def all_ones(received: Received) -> Answer:
    """A ruling of 1/1 for each step asked about, or of 1 for the answer."""
    data = json.loads(json.loads(received.body)["messages"][1]["content"][0]["text"])
    return reply(CORRECT if "generated_answer" in data else marks(*[(1, 1)] * len(data["steps"])))


def judge_request(image: str, steps: list[str] | None = None, key: str = "p#0") -> JudgeRequest:
    """A request with these steps; two by default."""
    return JudgeRequest(
        key=key,
        image=image,
        question="Which side?",
        answer="left",
        rationale="A CT. The lesion is on the left.",
        steps=["A CT.", "The lesion is on the left."] if steps is None else steps,
    )


def answer_request(image: str, generated: str = "left", key: str = "p#0") -> AnswerRequest:
    """A request about this answer."""
    return AnswerRequest(key=key, image=image, question="Which side?", answer="left", generated=generated)


def closed_port() -> int:
    """A port nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class ScriptedServer:
    """Answers the n-th request (from 0) with `script(n, request)`."""

    def __init__(self, script: Callable[[int, Received], Answer]) -> None:
        self.requests: list[Received] = []
        self.max_in_flight = 0
        self._script = script
        self._in_flight = 0
        self._lock = threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"  # connections are kept alive
            disable_nagle_algorithm = True

            def do_POST(self) -> None:
                outer._handle(self)

            def do_GET(self) -> None:
                outer._handle(self)

            def log_message(self, format: str, *args: Any) -> None:
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 128

            def handle_error(self, request: Any, client_address: Any) -> None:
                pass  # a client that leaves early is what some tests are about

        self._server = Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/v1"

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _handle(self, handler: BaseHTTPRequestHandler) -> None:
        length = int(handler.headers.get("content-length") or 0)
        body = handler.rfile.read(length)
        if len(body) < length:  # the client died while it sent: that is no request
            handler.close_connection = True
            return
        received = Received(
            method=handler.command,
            path=handler.path,
            headers={name.lower(): value for name, value in handler.headers.items()},
            body=body,
            at_s=time.monotonic(),
        )
        with self._lock:
            number = len(self.requests)
            self.requests.append(received)
            self._in_flight += 1
            self.max_in_flight = max(self.max_in_flight, self._in_flight)
        try:
            answer = self._script(number, received)
            time.sleep(answer.delay_s)
        finally:
            with self._lock:
                self._in_flight -= 1
        if answer.drop:
            handler.close_connection = True
            return
        handler.send_response(answer.status)
        for name, value in answer.headers.items():
            handler.send_header(name, value)
        handler.send_header("content-length", str(len(answer.body)))
        handler.end_headers()
        handler.wfile.flush()
        time.sleep(answer.stall_s)
        handler.wfile.write(answer.body)
