"""A web server with faults, for tests of what fetches."""

import contextlib
import hashlib
import http.server
import re
import threading
import time


class Server:
    """A folder on this machine's own address, with faults.

    `cut`: after how many bytes a file's next answer ends; `fail`: how many answers of a file are 503; `wrong`: files
    whose last byte is another; `always`: bytes of every answer; `headers`: sent instead of its own; `stall`: seconds
    before a file's bytes.
    """

    def __init__(self, folder, ranges=True):
        self.asked, self.folder = [], folder
        self.cut, self.fail, self.wrong, self.stall = {}, {}, set(), {}
        self.always, self.headers = None, {}
        server = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def log_message(self, *_):
                pass

            def do_GET(self):
                name = self.path.strip("/")
                start = re.match(r"bytes=(\d+)-", self.headers.get("Range") or "")
                server.asked.append((name, int(start[1]) if start else 0))
                if server.fail.get(name, 0):
                    server.fail[name] -= 1
                    return self.send_error(503)
                path = folder / name
                if not path.is_file():
                    return self.send_error(404)
                content = path.read_bytes()
                content = content[:-1] + b"?" if name in server.wrong else content
                tag = f'"{hashlib.sha256(content).hexdigest()}"'
                asked = self.headers.get("If-Range") in (None, tag)
                at = int(start[1]) if start and ranges and asked else 0
                if at >= len(content) and at:
                    return self.send_error(416)
                self.send_response(302 if "Location" in server.headers else 206 if at else 200)
                for key, value in ({"Content-Length": str(len(content) - at), "ETag": tag} | server.headers).items():
                    self.send_header(key, value)
                self.end_headers()
                time.sleep(server.stall.get(name, 0))
                body = content[at:][: server.always]
                with contextlib.suppress(ConnectionError):  # who has seen enough goes
                    self.wfile.write(body[: server.cut.pop(name)] if name in server.cut else body)
                return None

        self.http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(target=self.http.serve_forever, daemon=True)
        self.thread.start()
        self.url = f"http://127.0.0.1:{self.http.server_port}"

    def close(self):
        self.http.shutdown()
        self.http.server_close()
        self.thread.join()
