"""Checkpoints on the Hugging Face hub: the configuration and the one weights file of a model repository, brought into
the hub's cache, and nothing else of it: code that lies beside them is neither downloaded nor run."""

from __future__ import annotations

import hashlib
import re
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from common.errors import UserError
from dataset.hub import HUB_ID, explain_hub_error
from utils.config import CONFIG_FILE

DEFAULT_REVISION = "main"
_CHECKPOINT_ID = re.compile(rf"(?P<repo>{HUB_ID.pattern})(?:@(?P<revision>[A-Za-z0-9][\w.-]*(?:/[\w.-]+)*))?", re.ASCII)
_COMMIT = re.compile(r"[0-9a-f]{40}")
_STEP = re.compile(r"step_([0-9]{1,18})(?:/model\.safetensors)?")
_SAFETENSORS = re.compile(r"[A-Za-z0-9_][\w.-]*\.safetensors", re.ASCII)
_ATTEMPTS = 3


@dataclass(frozen=True)
class HubCheckpoint:
    """A checkpoint in the hub's cache: its two files, and the commit (40 hexadecimal digits) that they are from.

    Beneath their folder the files have the names that they have in the repository; so the weights file
    `step_<N>/model.safetensors` stands in a step folder, with the configuration in the folder above.
    """

    weights: Path
    config: Path
    commit: str


def is_hub_id(text: str) -> bool:
    """Whether `text` has the form `owner/name` or `owner/name@revision`.

    So has many a relative path: what exists on this machine should be taken before the hub is asked.
    """
    match = _CHECKPOINT_ID.fullmatch(text)
    return match is not None and ".." not in text


def fetch_checkpoint(hub_id: str) -> HubCheckpoint:
    """Download `all_config.yaml` and the weights of a model repository on the hub, or take them from the hub's cache.

    The weights are `checkpoint` (as in the official repositories), else the `step_<N>` with the largest N (a file, as
    the PyTorch code writes it, or a folder with `model.safetensors`), else `model.safetensors`, else the only
    `*.safetensors`. If the hub can't be reached, what an earlier call brought into the cache is used, with a line on
    stderr. Progress goes to stderr.

    Args:
        hub_id: `owner/name`, or `owner/name@revision` with a branch, a tag or a commit hash.

    Raises:
        UserError: if the two can't be had; it tells what failed and what helps.
    """
    match = _CHECKPOINT_ID.fullmatch(hub_id)
    if match is None or not is_hub_id(hub_id):
        raise UserError(f"{hub_id!r} is not the id of a model on the hub; expected owner/name or owner/name@revision")
    repo, revision = match["repo"], match["revision"] or DEFAULT_REVISION
    from huggingface_hub import HfApi, constants  # slow to import, and not needed for local files

    try:
        listing = HfApi().model_info(
            repo, revision=revision, files_metadata=True, timeout=constants.HF_HUB_ETAG_TIMEOUT
        )
    except Exception as error:  # its error classes differ between versions and HTTP libraries
        failure = explain_hub_error(error)
        cached = _find_in_cache(repo, revision) if failure.unreachable else None
        if cached is None:
            lost = ", and its files are not in the cache" if failure.unreachable else ""
            # It may have been meant for a path: say what it was taken for.
            raise UserError(f"{hub_id} as a model on the hub: {failure.reason}{lost}; {failure.remedy}") from error
        print(f"{failure.reason}: {hub_id} is taken from the cache, commit {cached.commit}", file=sys.stderr)
        return cached

    commit = str(listing.sha)
    files = {file.rfilename: file for file in listing.siblings or () if isinstance(file.rfilename, str)}
    if not _COMMIT.fullmatch(commit):
        raise UserError(f"{hub_id}: {constants.ENDPOINT} doesn't answer as the hub does; check HF_ENDPOINT")
    weights = _choose_weights(files)
    if CONFIG_FILE not in files or weights is None:
        lacking = CONFIG_FILE if CONFIG_FILE not in files else "weights (checkpoint, step_<N> or *.safetensors)"
        raise UserError(
            f"{hub_id}: the repository holds no {lacking}, only {_enumerate(files)}; give one that holds a trained HRM"
        )
    lfs = files[weights].lfs
    return _download(hub_id, repo, revision, commit, weights, lfs.sha256 if lfs is not None else None)


def _choose_weights(names: Iterable[str]) -> str | None:
    """The weights file among the files of a repository, or None.

    Only a name of one of the few known forms is ever returned, so none can lead out of the folder.
    """
    names = set(names)
    if "checkpoint" in names:
        return "checkpoint"
    steps = {name: int(match[1]) for name in names if (match := _STEP.fullmatch(name))}
    if steps:
        return max(steps, key=lambda name: (steps[name], name))
    if "model.safetensors" in names:
        return "model.safetensors"
    others = [name for name in names if _SAFETENSORS.fullmatch(name)]
    return others[0] if len(others) == 1 else None


def _find_in_cache(repo: str, revision: str) -> HubCheckpoint | None:
    """What an earlier download of this revision left in the hub's cache, if that is all that is needed."""
    from huggingface_hub import try_to_load_from_cache

    config = try_to_load_from_cache(repo, CONFIG_FILE, revision=revision)
    if not isinstance(config, str):  # None, or the mark of a file that is known not to exist
        return None
    folder = Path(config).parent
    weights = _choose_weights(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return None if weights is None else HubCheckpoint(folder / weights, Path(config), folder.name)


def _download(hub_id: str, repo: str, revision: str, commit: str, weights: str, sha256: str | None) -> HubCheckpoint:
    from huggingface_hub import try_to_load_from_cache

    try:
        # By its name first: so the cache learns which commit the name stands for, and answers without a network.
        config = _download_file(repo, CONFIG_FILE, revision)
        if config.parent.name != commit:  # the branch has moved since the listing
            config = _download_file(repo, CONFIG_FILE, commit)
        known = isinstance(try_to_load_from_cache(repo, weights, revision=commit), str)
        path = _download_file(repo, weights, commit)
        damaged = sha256 is not None and not known and _sha256(path) != sha256
        if damaged:
            path.resolve().unlink()  # the file itself, to which the cache's entry is a link in most places
            path.unlink(missing_ok=True)
    except Exception as error:
        failure = explain_hub_error(error)
        raise UserError(f"{hub_id}: {failure.reason}; {failure.remedy}") from error
    if damaged:
        raise UserError(f"{hub_id}: {weights} arrived damaged (its sha256 is not the hub's) and was removed; try again")
    return HubCheckpoint(path, config, commit)


def _download_file(repo: str, name: str, revision: str) -> Path:
    """Download one file, however often the connection breaks, within reason.

    huggingface_hub goes on where a connection ended, but which ends it takes for that differs between its versions.
    Those that it leaves are tried again here; where the version kept what had arrived, it goes on from there.
    """
    from huggingface_hub import hf_hub_download

    attempt = 0
    while True:
        attempt += 1
        try:
            return Path(hf_hub_download(repo, name, revision=revision))
        except Exception as error:
            failure = explain_hub_error(error)
            if attempt == _ATTEMPTS or not failure.broken:
                raise
            print(f"{repo}: {failure.reason}; {name} is tried again", file=sys.stderr)
            time.sleep(1)


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _enumerate(names: Iterable[str]) -> str:
    """Some of the names, in a form that is safe to print wherever they come from."""
    some = sorted(names)
    shown = [ascii(name[:60])[1:-1] for name in some[:8]]
    return ", ".join(shown) + (f" and {len(some) - 8} more" if len(some) > 8 else "") if some else "nothing"
