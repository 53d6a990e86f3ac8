"""A web server on the loopback that drops, stalls, truncates, forgets ranges, or changes a file."""

import hashlib
import http.server
import threading
from collections import Counter


def end_of_fetches():
    """Return when no thread fetches shards in the background.

    They go on after a reader is closed, and change the mirror while a test looks at it.
    """
    for thread in threading.enumerate():
        if thread.name == "fetch-ahead":
            thread.join()


class FaultyServer:
    """Serves ``files`` {name: bytes} with ranges.

    ``fault(name, start, count)`` -> None, or the name of a fault.

    Faults: "drop" (half of the body, then the connection is closed), "truncate" (half of it, as if
    that were all), "stall" (no body until the test is over), "error" (500), "everything" (the range
    is ignored), "wrong" (a body one byte too long).
    """

    def __init__(self, files, fault=lambda name, start, count: None, host="127.0.0.1"):
        self.files, self.fault = dict(files), fault
        self.requests, self.bytes_sent = Counter(), Counter()
        self.is_over, self.counting = threading.Event(), threading.Lock()
        self._server = _Server((host, 0), _handler(self))
        self._server.daemon_threads = True
        self.url = f"http://{host}:{self._server.server_address[1]}"

    def __enter__(self):
        threading.Thread(
            target=self._server.serve_forever, daemon=True, kwargs={"poll_interval": 0.01}
        ).start()
        return self

    def __exit__(self, *error):
        self.is_over.set()
        self._server.shutdown()
        self._server.server_close()


class _Server(http.server.ThreadingHTTPServer):
    request_queue_size = 128  # of 5, connections of several ranks are dropped and tried again later


def _handler(server):
    class Handler(http.server.BaseHTTPRequestHandler):
        def log_message(self, *args):
            pass

        def do_HEAD(self):
            self.answer(is_head=True)

        def do_GET(self):
            self.answer(is_head=False)

        def answer(self, is_head):
            name = self.path.lstrip("/")
            data = server.files.get(name)
            if data is None:
                self.send_error(404)
                return
            start, stop, status = 0, len(data), 200
            if self.headers.get("Range"):
                first, _, last = self.headers["Range"].removeprefix("bytes=").partition("-")
                start, stop, status = int(first), min(int(last) + 1, len(data)), 206
            kind = None if is_head else server.fault(name, start, stop - start)
            with server.counting:
                server.requests[name, kind or ("head" if is_head else "whole")] += 1
            if kind == "error":
                self.send_error(500)
                return
            body = (
                data
                if kind == "everything"
                else data[start:stop] + (b"?" if kind == "wrong" else b"")
            )
            half = len(body) // 2 if kind in ("drop", "truncate") else len(body)
            self.send_response(status)
            self.send_header("Content-Length", str(half if kind == "truncate" else len(body)))
            self.send_header("ETag", hashlib.md5(data).hexdigest())
            if status == 206 and kind != "everything":
                self.send_header("Content-Range", f"bytes {start}-{stop - 1}/{len(data)}")
            self.end_headers()
            if is_head:
                return
            if kind == "stall":
                server.is_over.wait(60)
            else:
                with server.counting:  # before they arrive: then the test may look
                    server.bytes_sent[name] += half
                self.wfile.write(body[:half])
            if kind in ("drop", "stall"):
                self.close_connection = True

    return Handler
