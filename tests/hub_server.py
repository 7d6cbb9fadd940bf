"""A Hugging Face hub on loopback: as much of it as uploading and downloading a model takes."""

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from unittest import mock
from urllib.parse import unquote, urlsplit

from huggingface_hub import constants, file_download

TOKEN = "hf_of_the_test"


@dataclass
class Hub:
    """What the hub holds, (repository, branch) -> name -> content, and what it was asked."""

    repositories: dict[tuple[str, str], dict[str, bytes]] = field(default_factory=dict)
    created: list[dict] = field(default_factory=list)
    url: str = ""

    def commit(self, repository: str, branch: str) -> str:
        digest = hashlib.sha1(f"{repository}\0{branch}".encode())
        for name, content in sorted(self.repositories[repository, branch].items()):
            digest.update(name.encode())
            digest.update(content)
        return digest.hexdigest()


def _handler(hub: Hub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def _answer(self, status: int, content: bytes = b"", **headers: str) -> None:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name.replace("_", "-"), value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)

        def _json(self, value: object, status: int = 200) -> None:
            self._answer(status, json.dumps(value).encode(), Content_Type="application/json")

        def _missing(self, code: str) -> None:
            self._answer(404, b"{}", X_Error_Code=code, X_Error_Message="not here")

        def _find(self, repository: str, revision: str) -> tuple[str, str] | None:
            for name, branch in hub.repositories:
                if name == repository and revision in (branch, hub.commit(name, branch)):
                    return name, branch
            return None

        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            parts = unquote(urlsplit(self.path).path).strip("/").split("/")
            if parts[:2] == ["api", "models"]:
                self._describe("/".join(parts[2:4]), parts[4:])
            elif len(parts) > 4 and parts[2] == "resolve":
                self._resolve("/".join(parts[:2]), parts[3], "/".join(parts[4:]))
            else:
                self._missing("EntryNotFound")

        def _describe(self, repository: str, rest: list[str]) -> None:
            place = self._find(repository, rest[1] if len(rest) > 1 else "main")
            if place is None:
                self._missing("RepoNotFound")
                return
            files, sha = hub.repositories[place], hub.commit(*place)
            if rest[:1] == ["tree"]:
                self._json(
                    [
                        {"type": "file", "path": n, "size": len(c), "oid": sha}
                        for n, c in files.items()
                    ]
                )
                return
            siblings = [{"rfilename": name} for name in files]
            self._json({"id": repository, "modelId": repository, "sha": sha, "siblings": siblings})

        def _resolve(self, repository: str, revision: str, name: str) -> None:
            place = self._find(repository, revision)
            if place is None or name not in hub.repositories[place]:
                self._missing("EntryNotFound" if place else "RepoNotFound")
                return
            content = hub.repositories[place][name]
            tag = hashlib.sha256(content).hexdigest()
            self._answer(200, content, ETag=f'"{tag}"', X_Repo_Commit=hub.commit(*place))

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            if self.headers.get("Authorization") != f"Bearer {TOKEN}":
                self._json({"error": "Invalid username or password."}, 401)
                return
            parts = unquote(urlsplit(self.path).path).strip("/").split("/")
            if parts == ["api", "repos", "create"]:
                self._create(json.loads(body))
                return
            if parts == ["api", "validate-yaml"]:
                self._json({"errors": [], "warnings": []})
                return
            repository, action, branch = "/".join(parts[2:4]), parts[4], parts[5]
            if action == "branch":
                hub.repositories.setdefault((repository, branch), {})
                self._json({})
            elif action == "preupload":
                names = [file["path"] for file in json.loads(body)["files"]]
                self._json(
                    {
                        "files": [
                            {"path": n, "uploadMode": "regular", "shouldIgnore": False}
                            for n in names
                        ]
                    }
                )
            else:
                self._commit(repository, branch, body)

        def _create(self, asked: dict) -> None:
            hub.created.append(asked)
            repository = f"{asked['organization']}/{asked['name']}"
            status = 409 if (repository, "main") in hub.repositories else 200
            hub.repositories.setdefault((repository, "main"), {})
            address = f"{hub.url}/{repository}"
            self._json({"url": address, "id": repository, "name": repository}, status)

        def _commit(self, repository: str, branch: str, body: bytes) -> None:
            for line in body.decode().splitlines():
                entry = json.loads(line)
                if entry["key"] == "file":
                    content = base64.b64decode(entry["value"]["content"])
                    hub.repositories[repository, branch][entry["value"]["path"]] = content
            sha = hub.commit(repository, branch)
            self._json(
                {
                    "success": True,
                    "commitOid": sha,
                    "commitUrl": f"{hub.url}/{repository}/commit/{sha}",
                    "hookOutput": "",
                }
            )

    return Handler


@contextmanager
def serve_hub(cache: Path, *, token: str | None = TOKEN) -> Iterator[Hub]:
    """Serves an empty hub, to which huggingface_hub talks as long as this lasts.

    Args:
        cache: an empty folder for what is downloaded, and for the token files of nobody.
        token: that the user has, or None.
    """
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(hub))
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    settings = {
        "ENDPOINT": hub.url,
        "HUGGINGFACE_CO_URL_TEMPLATE": hub.url + "/{repo_id}/resolve/{revision}/{filename}",
        "HF_HUB_CACHE": str(cache / "hub"),
        "HF_TOKEN_PATH": str(cache / "token"),
        "HF_STORED_TOKENS_PATH": str(cache / "tokens"),
        "HF_HUB_DISABLE_IMPLICIT_TOKEN": False,
    }
    # Before 1.0 the module that downloads had a name of its own for it.
    template = "HUGGINGFACE_CO_URL_TEMPLATE"
    of_downloads = {name: settings[name] for name in (template,) if hasattr(file_download, name)}
    environment = {"HF_TOKEN": token or "", "HUGGING_FACE_HUB_TOKEN": ""}
    try:
        with (
            mock.patch.multiple(constants, **settings),
            mock.patch.dict(vars(file_download), of_downloads),
            mock.patch.dict("os.environ", environment),
        ):
            yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
