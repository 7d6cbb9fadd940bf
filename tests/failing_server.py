"""A server on loopback that does not answer as it should."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

Answer = Callable[[str, int], tuple[int, bytes]]
"""Of the method and how many requests of it there were before: status and body."""


@contextmanager
def serve(answer: Answer) -> Iterator[tuple[str, list[str]]]:
    """Yields the address, and the methods that it was asked with so far."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def do_GET(self) -> None:
            status, body = answer(self.command, asked.count(self.command))
            asked.append(self.command)
            first, last = 0, len(body) - 1
            if status == 200 and self.command == "GET" and "Range" in self.headers:
                first, last = (int(n or last) for n in self.headers["Range"][6:].split("-"))
                last = min(last, len(body) - 1)
                status = 206
            self.send_response(status)
            self.send_header("Content-Length", str(last - first + 1))
            self.send_header("Accept-Ranges", "bytes")
            if status == 206:
                self.send_header("Content-Range", f"bytes {first}-{last}/{len(body)}")
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body[first : last + 1])

        do_HEAD = do_PUT = do_POST = do_DELETE = do_GET

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
