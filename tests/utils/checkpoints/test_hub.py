"""Checkpoints from the hub, against a stand-in that speaks its HTTP API: what arrives, and what is said otherwise."""

from __future__ import annotations

import fcntl
import itertools
import os
import pty
import random
import struct
import subprocess
import sys
import termios
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import constants, file_download

from common.errors import UserError
from tests.helpers.hub import ANONYMOUS, BAD_TOKEN, GATED, LFS_FROM_BYTES, Hub, Refusal, serve_hub
from utils.checkpoints.hub import fetch_checkpoint, is_hub_id

ROOT = Path(__file__).resolve().parents[3]
REPO = "someone/HRM"
CONFIG = b"arch: {}\n"
WEIGHTS = random.Random(0).randbytes(LFS_FROM_BYTES + 1234)
CHUNK = constants.DOWNLOAD_CHUNK_SIZE  # what has arrived of a chunk when the connection ends is not kept


def write_files(folder: Path, **contents: bytes) -> Path:
    for name, content in contents.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return folder


def official(folder: Path, weights: bytes = WEIGHTS) -> Path:
    code = {"hrm_act_v1.py": b"raise SystemExit", "losses.py": b"", ".gitattributes": b"", "README.md": b"HRM"}
    return write_files(folder, **{"all_config.yaml": CONFIG, "checkpoint": weights, **code})


def use_hub(monkeypatch: pytest.MonkeyPatch, address: str, cache: Path) -> None:
    """What HF_ENDPOINT and HF_HOME do, for which it is too late in this process."""
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.setattr(constants, "ENDPOINT", address)
    template = address + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(file_download, "HUGGINGFACE_CO_URL_TEMPLATE", template, raising=False)  # 0.x has a copy
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_IMPLICIT_TOKEN", True)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A repository as the official ones are; the cache is empty."""
    with serve_hub(REPO, official(tmp_path / "repository")) as hub:
        use_hub(monkeypatch, hub.address, tmp_path / "cache")
        yield hub


def fetch_error(hub_id: str = REPO) -> str:
    with pytest.raises(UserError) as caught:
        fetch_checkpoint(hub_id)
    message = str(caught.value)
    assert message.isprintable(), "not one line, or a control character in it"
    assert message.startswith(hub_id)
    return message


def run_fetch(
    tmp_path: Path, address: str, *, prefix: str = "", stderr: int = subprocess.PIPE, **env: str
) -> subprocess.CompletedProcess[str]:
    """Fetch in a process of its own, which prints the weights' path, or the message of the error after `error: `."""
    code = f"""
{prefix}
from common.errors import UserError
from utils.checkpoints.hub import fetch_checkpoint
try:
    print(fetch_checkpoint({REPO!r}).weights)
except UserError as error:
    print("error:", error)
"""
    home = {"HF_ENDPOINT": address, "HF_HOME": str(tmp_path / "home"), "NO_PROXY": "*", "HF_HUB_OFFLINE": "0"}
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={**os.environ, **home, **env},
        stdout=subprocess.PIPE,
        stderr=stderr,
        text=True,
        timeout=60,
        check=True,
    )


# ---------------------------------------------------------------------------------------------------- what arrives


@pytest.mark.parametrize(
    "repo",
    [
        "sapientinc/HRM-checkpoint-sudoku-extreme",
        "sapientinc/HRM-checkpoint-maze-30x30-hard",
        "sapientinc/HRM-checkpoint-ARC-2",
    ],
)
def test_official_repositories(repo: str, hub: Hub) -> None:
    """The ids of the published checkpoints would not work, or their code would come along."""
    hub.repo = repo
    fetched = fetch_checkpoint(repo)
    assert fetched.config.read_bytes() == CONFIG
    assert fetched.weights.read_bytes() == WEIGHTS
    assert (fetched.config.name, fetched.weights.name) == ("all_config.yaml", "checkpoint")
    assert fetched.commit == hub.refs["main"]
    assert not [request for request in hub.requests if ".py" in request.path]


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        (["step_9/model.safetensors", "step_30/model.safetensors", "step_30/x"], "step_30/model.safetensors"),
        (["step_9", "step_30", "step_30.txt", "model.safetensors"], "step_30"),
        (["checkpoint", "step_30", "model.safetensors"], "checkpoint"),
        (["model.safetensors", "other.safetensors", "below/model.safetensors"], "model.safetensors"),
        (["hrm-sudoku.safetensors", "below/other.safetensors"], "hrm-sudoku.safetensors"),
    ],
)
def test_which_weights_are_taken(files: list[str], expected: str, tmp_path: Path, hub: Hub) -> None:
    """A run's folder, put on the hub as it is, could not be evaluated from there, or the wrong step would be."""
    contents = {name: WEIGHTS + name.encode() for name in files}
    hub.push(write_files(tmp_path / "run", **{"all_config.yaml": CONFIG, **contents}))
    fetched = fetch_checkpoint(REPO)
    assert fetched.weights == fetched.config.parent / expected
    assert fetched.weights.read_bytes() == WEIGHTS + expected.encode()
    assert not [name for name in files if name != expected and hub.bodies(name)], "more than needed was downloaded"


def test_revisions(tmp_path: Path, hub: Hub) -> None:
    """`@revision` would give the newest weights instead of the ones named, or a run couldn't record which it used."""
    old = hub.refs["main"]
    hub.refs["v1.0"] = hub.refs["refs/pr/1"] = old
    new = hub.push(official(tmp_path / "new", WEIGHTS[::-1]))
    for revision, commit in (("", new), ("@v1.0", old), ("@refs/pr/1", old), (f"@{old}", old), ("@main", new)):
        fetched = fetch_checkpoint(REPO + revision)
        assert fetched.commit == commit
        assert fetched.weights.read_bytes() == (WEIGHTS if commit == old else WEIGHTS[::-1])


def test_the_cache_is_used(tmp_path: Path, hub: Hub) -> None:
    """Every evaluation would download 110 MB anew, or keep using weights that were replaced on the hub."""
    assert fetch_checkpoint(REPO) == fetch_checkpoint(REPO)
    assert len(hub.bodies("checkpoint")) == len(hub.bodies("all_config.yaml")) == 1
    commit = hub.push(official(tmp_path / "new", WEIGHTS[::-1]))
    assert fetch_checkpoint(REPO).commit == commit
    assert fetch_checkpoint(REPO).weights.read_bytes() == WEIGHTS[::-1]


def test_hostile_names_are_not_followed(tmp_path: Path, hub: Hub) -> None:
    """A repository could name files so that a download lands outside the cache, or scribbles on the terminal."""
    hub.listed = [
        "../../../evil.safetensors",
        "/evil.safetensors",
        "step_99/../../evil/model.safetensors",
        "..\\evil.safetensors",
        "C:evil.safetensors",
        "step_" + "9" * 5000,
        "step_٣",
        "\x1b[2Jevil\n.safetensors",
        5,
        ["checkpoint"],
    ]
    assert fetch_checkpoint(REPO).weights.read_bytes() == WEIGHTS
    hub.push(write_files(tmp_path / "none", **{"all_config.yaml": CONFIG}))
    before = len(hub.requests)
    assert "weights" in fetch_error()
    assert not [request for request in hub.requests[before:] if "/resolve/" in request.path]


@pytest.mark.parametrize(
    ("files", "parts"),
    [
        (["all_config.yaml", "README.md", "losses.py"], ["no weights", "'README.md', 'all_config.yaml', 'losses.py'"]),
        (["all_config.yaml", "a.safetensors", "b.safetensors"], ["no weights", "a.safetensors", "b.safetensors"]),
        (["checkpoint", "README.md"], ["no all_config.yaml", "'README.md', 'checkpoint'"]),
        ([], ["no all_config.yaml", "only nothing"]),
    ],
)
def test_repositories_without_a_checkpoint(files: list[str], parts: list[str], tmp_path: Path, hub: Hub) -> None:
    """Somebody else's model would end in a traceback, or only after its download."""
    (tmp_path / "other").mkdir()
    hub.push(write_files(tmp_path / "other", **dict.fromkeys(files, WEIGHTS)))
    message = fetch_error()
    for part in parts:
        assert part in message
    assert not [request for request in hub.requests if "/resolve/" in request.path]


def test_what_is_an_id() -> None:
    """A path would be looked for on the hub, or an id among the local files."""
    for text in ("sapientinc/HRM-checkpoint-ARC-2", "a/b", "a/b@main", "a/b@refs/pr/1", "a/b@" + "0" * 40):
        assert is_hub_id(text)
    for text in (
        "a",
        "a/b/c",
        "/a/b",
        "./a",
        "../b",
        "a/../b",
        "a/b@",
        "a/b@../x",
        "a/b@x//y",
        "a/b@-x",
        "a/b\n",
        "ä/b",
    ):
        assert not is_hub_id(text)
        with pytest.raises(UserError, match="expected owner/name or owner/name@revision"):
            fetch_checkpoint(text)


# ---------------------------------------------------------------------------------------------------- broken downloads


def test_a_broken_download_goes_on(tmp_path: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    """One hiccup of the network would lose a download of 2 GB, or leave a file with a seam in it."""
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    weights = random.Random(1).randbytes(CHUNK + 100_000)
    hub.push(official(tmp_path / "large", weights))
    hub.drops = iter([CHUNK + 50_000, 0])
    assert fetch_checkpoint(REPO).weights.read_bytes() == weights
    assert [request.range for request in hub.bodies("checkpoint")] == ["", f"bytes={CHUNK}-", f"bytes={CHUNK}-"]


def test_a_connection_that_is_reset(tmp_path: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    """huggingface_hub 1.x and 2.x give up: a user would get a traceback, or a file with a seam in it the next time."""
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    weights = random.Random(1).randbytes(CHUNK + 100_000)
    hub.push(official(tmp_path / "large", weights))
    hub.drops, hub.reset = itertools.repeat(CHUNK + 50_000, 6), True  # more often than 0.x tries
    assert "broke" in fetch_error()
    hub.drops = iter(())
    assert fetch_checkpoint(REPO).weights.read_bytes() == weights


def test_a_network_that_stays_broken(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    """The download would be tried for ever."""
    waits: list[float] = []
    monkeypatch.setattr("time.sleep", waits.append)
    hub.drops = itertools.repeat(1000)
    assert "broke" in fetch_error()
    assert sum(waits) < 30


def test_damaged_on_the_way(hub: Hub) -> None:
    """Part of the weights would be used, or stay in the cache so that trying again doesn't help."""
    hub.tamper = lambda content: content[:-1]
    assert "another size" in fetch_error()
    hub.tamper = bytes
    assert fetch_checkpoint(REPO).weights.read_bytes() == WEIGHTS


# ---------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("hub_id", "refusals", "parts"),
    [
        ("nobody/nothing", {}, ["nothing of that name", "HTTP 404", "spelling"]),
        (f"{REPO}@v9", {}, ["no such revision", "HTTP 404", "a branch, a tag or"]),
        (REPO, {"/api/models": ANONYMOUS}, ["nothing of that name", "HTTP 401", "hf auth login", "HF_TOKEN"]),
        (REPO, {"/api/models": BAD_TOKEN}, ["the token is not valid", "HTTP 401", "renew it"]),
        (REPO, {"/api/models": GATED}, ["on request", "HTTP 403", "request it", "hf auth login"]),
        (REPO, {f"/{REPO}": GATED}, ["on request", "HTTP 403", "request it"]),  # listing is open to all
        (REPO, {"/api/models": Refusal(403)}, ["may not read", "HTTP 403", "an account that may"]),
        (REPO, {"/api/models": Refusal(429)}, ["too many requests", "HTTP 429", "wait"]),
        (REPO, {"/api/models": Refusal(503)}, ["out of order", "HTTP 503", "not in the cache", "later"]),
        (REPO, {"/content": Refusal(503)}, ["out of order", "HTTP 503", "later"]),
        (REPO, {f"/{REPO}": Refusal(404, "EntryNotFound")}, ["no such file", "HTTP 404"]),
        (REPO, {"/api/models": Refusal(418, "", "tea\x1b[2Jpot")}, ["HTTP 418", "tea?[2Jpot"]),
        (REPO, {"/api/models": Refusal(200)}, ["is not the hub's", "HF_ENDPOINT"]),
        ("a--b/c", {}, ["not valid on the hub", "spelling"]),
    ],
)
def test_refusals(hub_id: str, refusals: dict[str, Refusal], parts: list[str], hub: Hub) -> None:
    """A user would get a page of HTTP tracebacks, and no word of what helps."""
    hub.refusals = refusals
    message = fetch_error(hub_id)
    for part in parts:
        assert part in message


def break_hub(kind: str, hub: Hub, monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    if kind == "refused":
        use_hub(monkeypatch, "http://127.0.0.1:9", cache)  # the port `discard`, where nobody listens
    elif kind == "unknown":
        use_hub(monkeypatch, "http://hub.invalid", cache)  # a name that is reserved for not existing
    elif kind == "not secure":
        use_hub(monkeypatch, hub.address.replace("http", "https"), cache)  # which isn't spoken there
    elif kind == "slow":
        hub.delay = 0.4
        monkeypatch.setattr(constants, "HF_HUB_ETAG_TIMEOUT", 0.1)
    else:
        hub.refusals = {"/": Refusal(503)}


@pytest.mark.parametrize(
    ("kind", "part"),
    [
        ("refused", "is refused"),
        ("unknown", "can't be found"),
        ("not secure", "no secure connection"),
        ("slow", "no answer from"),
        ("out of order", "HTTP 503"),
    ],
)
def test_a_hub_out_of_reach(
    kind: str,
    part: str,
    tmp_path: Path,
    hub: Hub,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Without a network a user would have to wait, or could not use what was downloaded before."""
    break_hub(kind, hub, monkeypatch, tmp_path / "empty")
    message = fetch_error()
    assert part in message
    assert "not in the cache" in message
    hub.refusals, hub.delay = {}, 0.0
    use_hub(monkeypatch, hub.address, tmp_path / "cache")
    monkeypatch.setattr(constants, "HF_HUB_ETAG_TIMEOUT", 10)
    fetched = fetch_checkpoint(REPO)
    break_hub(kind, hub, monkeypatch, tmp_path / "cache")
    capsys.readouterr()
    assert fetch_checkpoint(REPO) == fetched
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert part in lines[0]
    assert "from the cache" in lines[0]
    assert fetched.commit in lines[0]
    assert "not in the cache" in fetch_error(f"{REPO}@v9")  # which was never fetched


def test_half_a_download_is_not_taken_from_the_cache(hub: Hub) -> None:
    """After a download that failed midway, the cache would be taken for complete and loading would fail strangely."""
    hub.refusals = {"/content": Refusal(503)}
    fetch_error()
    hub.refusals = {"/": Refusal(503)}
    assert "not in the cache" in fetch_error()


# ---------------------------------------------------------------------------------------------------- the environment


@pytest.mark.slow
def test_offline_and_progress(tmp_path: Path, hub: Hub) -> None:
    """The hub's variables would have no effect, a download of minutes would show nothing, or fill a log file."""
    nothing = run_fetch(tmp_path, hub.address, HF_HUB_OFFLINE="1")
    assert nothing.stdout.startswith(f"error: {REPO} as a model on the hub: HF_HUB_OFFLINE")
    assert "unset it" in nothing.stdout
    assert not hub.requests

    terminal, other_end = pty.openpty()
    fcntl.ioctl(other_end, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    done = run_fetch(tmp_path, hub.address, stderr=other_end)
    shown = os.read(terminal, 100_000).decode()
    os.close(terminal)
    os.close(other_end)
    weights = Path(done.stdout.strip())
    assert weights.is_relative_to(tmp_path / "home")
    assert weights.read_bytes() == WEIGHTS
    assert "checkpoint: 100%" in shown

    again = run_fetch(tmp_path, "http://127.0.0.1:9", HF_HUB_OFFLINE="1")
    assert again.stdout == done.stdout
    assert len(again.stderr.splitlines()) == 1
    assert "HF_HUB_OFFLINE" in again.stderr
    assert "from the cache" in again.stderr


@pytest.mark.slow
def test_no_room_in_the_cache(tmp_path: Path, hub: Hub) -> None:
    """A full disk would end in a traceback; a log file would be filled with progress bars."""
    limit = f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({LFS_FROM_BYTES // 2},) * 2)"
    result = run_fetch(tmp_path, hub.address, prefix=limit)
    assert result.stdout.startswith(f"error: {REPO}: the hub's cache {tmp_path / 'home' / 'hub'} has no room for it")
    assert "HF_HOME" in result.stdout
    assert len(result.stdout.splitlines()) == 1
    assert result.stderr == ""


def test_a_cache_that_cannot_be_written(tmp_path: Path, hub: Hub) -> None:
    """A wrong HF_HOME would end in a traceback."""
    (tmp_path / "cache").write_text("a file, where a folder is needed")
    message = fetch_error()
    assert str(tmp_path / "cache") in message
    assert "HF_HOME" in message
