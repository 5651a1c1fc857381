"""A web server on this machine that can misbehave."""

import hashlib
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from antigram.pipeline.corpus import Archive

HTML = b"<!DOCTYPE html><html><body>Too many requests</body></html>"


class Server:
    """A server of ``files``; ``ranges``, ``cut``, ``status`` and ``html`` make it misbehave."""

    def __init__(self):
        self.files, self.asked = {}, []
        self.ranges, self.cut, self.status, self.sized = True, None, None, True
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                outer.answer(self)

            def log_message(self, *_arguments):
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.thread = threading.Thread(target=self.http.serve_forever, args=(0.01,))
        self.thread.start()

    def answer(self, request):
        name, span = request.path.strip("/"), request.headers.get("Range")
        self.asked.append((name, span))
        data = self.files.get(name)
        if self.status or data is None:
            request.send_response(self.status or 404)
            request.send_header("Content-Type", "text/html")
            request.end_headers()
            request.wfile.write(HTML)
            return
        start = 0
        if span and self.ranges:
            start = int(span.removeprefix("bytes=").removesuffix("-"))
            if start >= len(data):
                request.send_response(416)
                request.send_header("Content-Range", f"bytes */{len(data)}")
                request.end_headers()
                return
            request.send_response(206)
            told = f"bytes {start}-{len(data) - 1}/{len(data)}"
            request.send_header("Content-Range", told)
        else:
            request.send_response(200)
        if self.sized:
            request.send_header("Content-Length", str(len(data) - start))
        request.end_headers()
        request.wfile.write(data[start : self.cut])

    def close(self):
        self.http.shutdown()
        self.thread.join()
        self.http.server_close()

    def archive(self, name, data, **known):
        self.files[name] = data
        return Archive(url=f"http://127.0.0.1:{self.http.server_port}/{name}", name=name, **known)

    def whole(self, name, data):
        """Return an archive with its published size and hash."""
        digest = hashlib.sha256(data).hexdigest()
        return self.archive(name, data, size=len(data), known_hash=f"sha256:{digest}")
