"""A Hub on this machine's own address, as far as bundles are pushed to it and fetched from it."""

import base64
import contextlib
import hashlib
import http.server
import json
import threading
from urllib.parse import unquote


class Hub:
    """Repositories by name: `repositories["me/x"]` has `private`, `refs` and `commits`, files by their commit.

    `asked`: method and path of every request. `tokens`: those that may read what is private, and write. `redirect`:
    another server's address, which has the files.
    """

    def __init__(self, *tokens):
        self.repositories, self.asked, self.tokens, self.redirect, self.messages = {}, [], tokens, "", []
        hub = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def log_message(self, *_):
                pass

            def _answer(self, content, code=200, **headers):
                body = content if isinstance(content, bytes) else json.dumps(content).encode()
                self.send_response(code)
                for key, value in ({"Content-Length": str(len(body))} | headers).items():
                    self.send_header(key, value)
                self.end_headers()
                with contextlib.suppress(ConnectionError):  # who has seen enough goes
                    self.wfile.write(body)

            def _known(self):
                return (self.headers.get("Authorization") or "").removeprefix("Bearer ") in hub.tokens

            def do_GET(self):
                path = self.path.strip("/")
                hub.asked.append(("GET", path))
                words = path.removeprefix("api/models/").split("/")
                found = hub.repositories.get("/".join(words[:2]))
                if found is None or (found["private"] and not self._known()):
                    return self._answer({"error": "Repository not found"}, 401)
                revision = unquote(words[3])
                commit = found["refs"].get(revision, revision)
                if commit not in found["commits"]:
                    return self._answer({"error": "Invalid rev id"}, 404)
                if path.startswith("api/models/"):
                    return self._answer({"id": "/".join(words[:2]), "sha": commit})
                if hub.redirect:
                    return self._answer(b"", 302, Location=f"{hub.redirect}/{words[4]}")
                if words[4] not in found["commits"][commit]:
                    return self._answer({"error": "Entry not found"}, 404)
                return self._answer(found["commits"][commit][words[4]])

            def do_POST(self):
                path = self.path.partition("?")[0].strip("/")
                hub.asked.append(("POST", path))
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if not self._known():
                    return self._answer({"error": "Invalid credentials"}, 401)
                if path == "api/validate-yaml":
                    return self._answer({"errors": [], "warnings": []})
                if path == "api/repos/create":
                    asked = json.loads(body)
                    name = f"{asked['organization']}/{asked['name']}"
                    private = asked.get("visibility") == "private" or asked.get("private", False)
                    if name in hub.repositories:
                        return self._answer({"error": "You already created this", "url": f"{hub.url}/{name}"}, 409)
                    hub.repositories[name] = {"private": private, "refs": {"main": "0" * 40}, "commits": {"0" * 40: {}}}
                    return self._answer({"url": f"{hub.url}/{name}"})
                name, what, revision = "/".join(path.split("/")[2:4]), path.split("/")[4], path.split("/")[5]
                found = hub.repositories[name]
                if revision not in found["refs"]:
                    return self._answer({"error": f"Invalid rev id: {revision}"}, 404)
                if what == "preupload":
                    listed = [f["path"] for f in json.loads(body)["files"]]
                    modes = [{"path": p, "uploadMode": "regular", "shouldIgnore": False} for p in listed]
                    return self._answer({"files": modes})
                lines = [json.loads(line) for line in body.splitlines()]
                added = {
                    x["value"]["path"]: base64.b64decode(x["value"]["content"]) for x in lines if x["key"] == "file"
                }
                hub.messages += [x["value"]["summary"] for x in lines if x["key"] == "header"]
                commit = hub.put(name, {**found["commits"][found["refs"][revision]], **added}, revision)
                return self._answer({"commitUrl": f"{hub.url}/{name}/commit/{commit}", "commitOid": commit})

        self.http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(target=self.http.serve_forever, daemon=True)
        self.thread.start()
        self.url = f"http://127.0.0.1:{self.http.server_port}"

    def put(self, name, files, revision="main", private=False):
        """A commit with these files, and nothing else."""
        found = self.repositories.setdefault(name, {"private": private, "refs": {}, "commits": {}})
        said = json.dumps([name, sorted((k, hashlib.sha1(v).hexdigest()) for k, v in files.items())])
        commit = hashlib.sha1(said.encode()).hexdigest()
        found["commits"][commit] = files
        found["refs"][revision] = commit
        return commit

    def close(self):
        self.http.shutdown()
        self.http.server_close()
        self.thread.join()
