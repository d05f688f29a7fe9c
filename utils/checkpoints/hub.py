"""Checkpoints on the Hugging Face hub: downloads the configuration and the weights file of a model repository.

Nothing else of it is downloaded, and no code of it is run.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from common.errors import UserError, shown
from common.hub import HUB_ID, check_hub_variables, explain_hub_error, quiet_hub
from utils.config import CONFIG_FILE

DEFAULT_REVISION = "main"
_CHECKPOINT_ID = re.compile(rf"(?P<repo>{HUB_ID.pattern})(?:@(?P<revision>[A-Za-z0-9][\w.-]*(?:/[\w.-]+)*))?", re.ASCII)
_STEP = re.compile(r"step_([0-9]{1,18})(?:/model\.safetensors)?")
_SAFETENSORS = re.compile(r"[A-Za-z0-9_][\w.-]*\.safetensors", re.ASCII)
_NAMES_IN_MESSAGE = 8


@dataclass(frozen=True)
class HubCheckpoint:
    """The two files of a checkpoint in the hub's cache, under the paths that they have in the repository.

    Attributes:
        weights: the weights; a `step_<N>/model.safetensors` is in a step folder below the configuration's.
        config: the configuration.
    """

    weights: Path
    config: Path

    @property
    def commit(self) -> str:
        """The commit that the files are from, 40 hexadecimal digits: the name of their folder in the cache."""
        return self.config.parent.name


def is_hub_id(text: str) -> bool:
    """Return whether `text` has the form `owner/name` or `owner/name@revision`.

    Many relative paths have it too: check first whether the path exists.
    """
    match = _CHECKPOINT_ID.fullmatch(text)
    return match is not None and ".." not in text


def fetch_checkpoint(hub_id: str) -> HubCheckpoint:
    """Download `all_config.yaml` and the weights of a model repository on the hub, or take them from the hub's cache.

    The weights are `checkpoint` (as in the official repositories), else the `step_<N>` with the largest N (a file of
    the PyTorch code, or a folder with `model.safetensors`), else `model.safetensors`, else the only `*.safetensors`. If
    the hub can't be reached, the files of an earlier call are used, with a line on stderr. Progress goes to stderr.

    Args:
        hub_id: `owner/name`, or `owner/name@revision` with a branch, a tag or a commit hash.

    Returns:
        The two files, in the hub's cache.

    Raises:
        UserError: if one of the two is missing or can't be downloaded; it names the reason and the remedy.
    """
    match = _CHECKPOINT_ID.fullmatch(hub_id)
    if match is None or not is_hub_id(hub_id):
        raise UserError(f"{hub_id!r} is not the id of a model on the hub; expected owner/name or owner/name@revision")
    repo, revision = match["repo"], match["revision"] or DEFAULT_REVISION
    check_hub_variables()
    from huggingface_hub import HfApi, constants, hf_hub_download  # slow to import, and not needed for local files

    try:
        with quiet_hub():
            listing = HfApi().model_info(repo, revision=revision, timeout=constants.HF_HUB_ETAG_TIMEOUT)
    except Exception as error:  # its error classes differ between versions and HTTP libraries
        failure = explain_hub_error(error)
        cached = _find_in_cache(repo, revision) if failure.unreachable else None
        if cached is None:
            lost = ", and its files are not in the cache" if failure.unreachable else ""
            # The id may have been meant for a path, so the message names what it was taken for.
            raise UserError(f"{hub_id} as a model on the hub: {failure.reason}{lost}; {failure.remedy}") from error
        print(f"{failure.reason}: {hub_id} is taken from the cache, commit {cached.commit}", file=sys.stderr)
        return cached

    files = [file.rfilename for file in listing.siblings or () if isinstance(file.rfilename, str)]
    weights = _choose_weights(files)
    if CONFIG_FILE not in files or weights is None:
        lacking = CONFIG_FILE if CONFIG_FILE not in files else "weights (checkpoint, step_<N> or *.safetensors)"
        raise UserError(
            f"{hub_id}: the repository holds no {lacking}, only {_enumerate(files)}; give one that holds a trained HRM"
        )
    try:
        # By the revision's name first: the cache then records its commit, and works without a network.
        with quiet_hub():
            config = Path(hf_hub_download(repo, CONFIG_FILE, revision=revision))
            return HubCheckpoint(Path(hf_hub_download(repo, weights, revision=config.parent.name)), config)
    except Exception as error:
        failure = explain_hub_error(error)
        raise UserError(f"{hub_id}: {failure.reason}; {failure.remedy}") from error


def _choose_weights(names: Iterable[str]) -> str | None:
    """Choose the weights file among the files of a repository; None if there is none, or no single one.

    Only names of these few forms are returned, so none can lead out of the folder.
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
    """Find what an earlier download of this revision left in the hub's cache, if both files are there."""
    from huggingface_hub import try_to_load_from_cache

    config = try_to_load_from_cache(repo, CONFIG_FILE, revision=revision)
    if not isinstance(config, str):  # None, or the mark of a file that does not exist on the hub
        return None
    folder = Path(config).parent
    weights = _choose_weights(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return None if weights is None else HubCheckpoint(folder / weights, Path(config))


def _enumerate(names: list[str]) -> str:
    """List some of the names of a repository's files."""
    some = [shown(name, 60) for name in sorted(names)[:_NAMES_IN_MESSAGE]]
    more = f" and {len(names) - len(some)} more" if len(names) > len(some) else ""
    return (", ".join(some) or "nothing") + more
