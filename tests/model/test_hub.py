"""Checkpoints by "owner/model": from the Hub's cache as huggingface_hub lays it out, or fetched from a server."""

import http.server
import json
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from engine.model import resolve_folder
from engine.runtime import LLM

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache of the Hub, in use."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def test_a_cached_model(folders, cache):
    home = cache / "models--someone--tiny"
    snapshot = home / "snapshots" / COMMIT
    (home / "blobs").mkdir(parents=True)
    snapshot.mkdir(parents=True)
    (home / "refs").mkdir()
    (home / "refs" / "main").write_text(COMMIT)
    for i, path in enumerate(sorted(folders.policy.iterdir())):
        blob = home / "blobs" / f"{i:040x}"
        shutil.copy(path, blob)
        (snapshot / path.name).symlink_to(f"../../blobs/{blob.name}")
    assert resolve_folder("someone/tiny") == snapshot
    assert LLM.load("someone/tiny", num_blocks=8).config.vocab_size == 35


@pytest.mark.parametrize("name", ["someone/tiny", "a/b"])
def test_neither_a_folder_nor_cached(cache, name):
    with pytest.raises(ValueError, match=f"no checkpoint folder at '{name}'.*not in the local cache.*HF_HUB_OFFLINE"):
        resolve_folder(name)


@pytest.mark.parametrize("name", ["/nowhere/at-all", "../a", "a/b/c", "a", "./b/c", "a\\b", "-a/b", "https://x/y", ""])
def test_a_name_that_is_no_id(cache, name):
    with pytest.raises(ValueError, match="no checkpoint folder at"):
        resolve_folder(name or "missing/")


class Server(http.server.BaseHTTPRequestHandler):
    """As much of the Hub as a download asks for; `files` by name, `asked` is what was fetched."""

    files: dict[str, bytes]
    asked: list[str]

    def do_HEAD(self):
        self.respond(has_body=False)

    def do_GET(self):
        self.respond(has_body=True)

    def respond(self, has_body: bool) -> None:
        path = self.path.split("?")[0]
        name = path.rpartition("/")[2]
        if path.startswith("/api/models/someone/tiny/tree/"):
            rows = [{"type": "file", "path": n, "size": len(b), "oid": f"{i:040x}"} for i, (n, b) in self.numbered()]
            self.send(json.dumps(rows).encode(), has_body)
        elif path.startswith("/api/models/someone/tiny"):
            about = {"id": "someone/tiny", "sha": COMMIT, "siblings": [{"rfilename": n} for n in self.files]}
            self.send(json.dumps(about).encode(), has_body)
        elif "/resolve/" in path and name in self.files:
            self.asked.append(name)
            self.send(self.files[name], has_body)
        else:
            self.send(b'{"error": "Repository not found"}', has_body, 404)

    def numbered(self):
        return enumerate(self.files.items())

    def send(self, body: bytes, has_body: bool, status: int = 200) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Content-Type", "application/json")
        self.send_header("ETag", f'"{len(body):040x}"')
        self.send_header("X-Repo-Commit", COMMIT)
        if status == 404:
            self.send_header("X-Error-Code", "RepoNotFound")
        self.end_headers()
        if has_body:
            self.wfile.write(body)

    def log_message(self, *args) -> None:
        pass


RESOLVE = """
import sys
from engine.model import resolve_folder

for name in sys.stdin:
    try:
        print("folder", resolve_folder(name.strip()), flush=True)
    except ValueError as error:
        print("error", error, flush=True)
"""


def start_elsewhere(endpoint: str, home) -> subprocess.Popen:
    """A process that resolves names, may reach `endpoint`, and nothing else."""
    kept = {key: value for key, value in os.environ.items() if "OFFLINE" not in key and "proxy" not in key.lower()}
    environment = {**kept, "HF_ENDPOINT": endpoint, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1", "NO_PROXY": "*"}
    environment |= {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "HF_HUB_DISABLE_TELEMETRY": "1"}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    return subprocess.Popen([sys.executable, "-c", RESOLVE], env=environment, text=True, **pipes)


def ask(process: subprocess.Popen, name: str) -> tuple[str, str]:
    """("folder", path) or ("error", sentence)."""
    process.stdin.write(f"{name}\n")
    process.stdin.flush()
    kind, _, rest = process.stdout.readline().strip().partition(" ")
    return kind, rest


def test_a_model_is_fetched_without_what_is_not_read(folders, tmp_path):
    wanted = {path.name: path.read_bytes() for path in folders.policy.iterdir()}
    unwanted = dict.fromkeys(("pytorch_model.bin", "modeling_x.py", "model.gguf", "training_args.bin"), b"x")
    handler = type("Handler", (Server,), {"files": wanted | unwanted, "asked": []})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    process = start_elsewhere(f"http://127.0.0.1:{server.server_port}", tmp_path)
    try:
        kind, folder = ask(process, "someone/tiny")
        missing = ask(process, "someone/other")
        server.shutdown()
        server.server_close()
        unreachable = ask(process, "someone/third")
    finally:
        process.communicate()
        server.shutdown()
        thread.join()
        server.server_close()
    assert kind == "folder", folder
    assert set(handler.asked) == set(wanted)
    assert {path.name: path.read_bytes() for path in Path(folder).iterdir()} == wanted
    for (kind, sentence), name, why in (
        (missing, "someone/other", "no such repository"),
        (unreachable, "someone/third", "cannot be reached"),
    ):
        assert kind == "error"
        assert sentence.startswith(f"no checkpoint folder at '{name}', and it cannot be had from the Hub: ")
        assert why in sentence
