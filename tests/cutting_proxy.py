"""A proxy before an object store that fails each request once, in one of the ways that networks and services fail."""

import http.client
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType

# before it is forwarded; after, so that the store has done it and nobody knows; half of the answer
CUT, CUT_AFTER, HALF, BUSY, TOO_MANY = "cut", "cut after", "half", "503", "429"
FAULTS = (BUSY, CUT, TOO_MANY, CUT_AFTER, HALF)


class Proxy:
    """Listens on a free port of this machine; a context manager.

    Parameters
    ----------
    port : int
        Of the store, on this machine too.
    first : int
        Which of the faults comes first; they take turns.

    Attributes
    ----------
    port : int
    failed : list of (str, str)
        The fault and the request, one for each that was failed.
    """

    def __init__(self, port: int, first: int = 0) -> None:
        self._store, self._first, self._lock = port, first, threading.Lock()
        self.failed: list[tuple[str, str]] = []
        self._seen: set[str] = set()
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: object) -> None:
                pass

            def handle_one_request(self) -> None:
                self.raw_requestline = self.rfile.readline(65537)
                if not self.raw_requestline or not self.parse_request():
                    self.close_connection = True
                    return
                proxy._handle(self)

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.port = self._server.server_port
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    def _fault(self, request: str) -> str | None:
        with self._lock:
            if request in self._seen:
                return None
            self._seen.add(request)
            fault = FAULTS[(self._first + len(self.failed)) % len(FAULTS)]
            self.failed.append((fault, request))
            return fault

    def _handle(self, handler: BaseHTTPRequestHandler) -> None:
        body = _body(handler)
        fault = self._fault(f"{handler.command} {handler.path} {handler.headers.get('x-ms-range', '')}")
        if fault in (BUSY, TOO_MANY):
            handler.send_response(int(fault))
            handler.send_header("Content-Length", "0")
            handler.end_headers()
            return
        if fault == CUT:
            handler.close_connection = True
            return
        connection = http.client.HTTPConnection("127.0.0.1", self._store, timeout=60)
        connection.putrequest(handler.command, handler.path, skip_host=True, skip_accept_encoding=True)
        for name, value in handler.headers.items():
            if name.lower() not in ("connection", "transfer-encoding", "content-length"):
                connection.putheader(name, value)
        if body or handler.command in ("PUT", "POST"):
            connection.putheader("Content-Length", str(len(body)))
        connection.endheaders(body)
        answer = connection.getresponse()
        content = answer.read()
        connection.close()
        if fault == CUT_AFTER:
            handler.close_connection = True
            return
        handler.send_response_only(answer.status, answer.reason)
        for name, value in answer.getheaders():
            if name.lower() not in ("connection", "transfer-encoding", "content-length", "keep-alive"):
                handler.send_header(name, value)
        length = answer.getheader("Content-Length") if handler.command == "HEAD" else str(len(content))
        if answer.status != 304 and length is not None:
            handler.send_header("Content-Length", length)
        handler.end_headers()
        handler.wfile.write(content[: len(content) // 2] if fault == HALF else content)
        handler.close_connection = fault == HALF

    def __enter__(self) -> "Proxy":
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()


def _body(handler: BaseHTTPRequestHandler) -> bytes:
    if handler.headers.get("Transfer-Encoding", "").lower() != "chunked":
        return handler.rfile.read(int(handler.headers.get("Content-Length") or 0))
    parts = []
    while size := int(handler.rfile.readline().split(b";")[0], 16):
        parts.append(handler.rfile.read(size))
        handler.rfile.readline()
    handler.rfile.readline()
    return b"".join(parts)
