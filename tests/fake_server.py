"""A server of chat completions in tests: it replies as it is told, well or badly, and keeps what it was asked."""

import contextlib
import json
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Reply = Callable[[BaseHTTPRequestHandler, dict[str, Any]], None]


def _send(handler: BaseHTTPRequestHandler, content: bytes, status: int = 200, **headers: str) -> None:
    handler.send_response(status)
    for name, value in {"Content-Length": str(len(content)), **headers}.items():
        handler.send_header(name.replace("_", "-"), value)
    handler.end_headers()
    handler.wfile.write(content)


def says(text: str | None, end: str = "stop", **message: Any) -> Reply:
    reply = {
        "choices": [{"message": {"role": "assistant", "content": text, **message}, "finish_reason": end}],
        "usage": {"prompt_tokens": 600, "completion_tokens": 7},
    }
    return lambda handler, body: _send(handler, json.dumps(reply).encode())


def fails(status: int, **headers: str) -> Reply:
    return lambda handler, body: _send(handler, b'{"error": "busy"}', status, **headers)


def garbles(content: bytes) -> Reply:
    return lambda handler, body: _send(handler, content)


def cuts(handler: BaseHTTPRequestHandler, body: dict[str, Any]) -> None:
    """Promises more than it sends, then hangs up."""
    handler.send_response(200)
    handler.send_header("Content-Length", "5000")
    handler.end_headers()
    handler.wfile.write(b'{"choices": [')


def breaks_off(handler: BaseHTTPRequestHandler, body: dict[str, Any]) -> None:
    """An error whose explanation never comes: the connection is reset."""
    handler.send_response(500)
    handler.send_header("Content-Length", "5000")
    handler.end_headers()
    handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    handler.connection.shutdown(socket.SHUT_RDWR)


def drips(handler: BaseHTTPRequestHandler, body: dict[str, Any]) -> None:
    """Sends a byte now and then, each in time."""
    handler.send_response(200)
    handler.send_header("Content-Length", "5000")
    handler.end_headers()
    with contextlib.suppress(OSError):
        for _ in range(60):
            handler.wfile.write(b" ")
            time.sleep(0.05)


@contextmanager
def server(*replies: Reply) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """A server that gives these replies one after another, the last one for ever, and what it was asked."""
    asked: list[dict[str, Any]] = []
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with lock:
                reply = replies[min(len(asked), len(replies) - 1)]
                asked.append(body | {"path": self.path, "key": self.headers.get("Authorization")})
            reply(self, body)

        def log_message(self, *args: Any) -> None:
            pass

    running = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=running.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{running.server_port}/v1", asked
    finally:
        running.shutdown()
        running.server_close()
        thread.join()
