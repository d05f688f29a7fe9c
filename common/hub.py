"""Recognise names on the Hugging Face hub, and explain its errors, for data sets and checkpoints alike.

huggingface_hub has changed its HTTP library and some of its error classes between 0.30 and 2.x. What stayed is the
chain of causes down to the answer's status or the system's error, which is read here.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import socket
import ssl
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from common.errors import NO_SPACE, UserError, shown

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")  # owner/name
_HTTP_LIBRARIES = ("requests", "urllib3", "httpx", "httpcore")
_TALKATIVE = ("huggingface_hub", "urllib3", "httpx")  # loggers
_READ_BY_THE_HUB = ("HF_ENDPOINT", "HF_HUB_ETAG_TIMEOUT", "HF_HUB_DOWNLOAD_TIMEOUT")  # which may fail; no secrets
_LOG_IN = "log in with `hf auth login` or set HF_TOKEN"


@dataclass(frozen=True)
class HubFailure:
    """A failed request to the hub.

    Attributes:
        reason: what went wrong, a part of a sentence.
        remedy: what the user can do, likewise.
        unreachable: no answer came from the hub itself, so what is in the cache may still hold.
    """

    reason: str
    remedy: str
    unreachable: bool = False


@contextlib.contextmanager
def quiet_hub() -> Iterator[None]:
    """Keep the hub client's account of its retries from the terminal: what came of them is told in one line.

    `HF_HUB_VERBOSITY`, the client's own variable, brings it back.
    """
    import huggingface_hub  # noqa: F401  # slow to import; sets the levels of its loggers when it is

    loggers = [] if "HF_HUB_VERBOSITY" in os.environ else list(map(logging.getLogger, _TALKATIVE))
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def check_hub_variables() -> None:
    """Let huggingface_hub read its variables, as its import does.

    Raises:
        UserError: if one of them, such as HF_ENDPOINT, has a value that it can't read.
    """
    try:
        import huggingface_hub.constants  # noqa: F401 - slow to import
    except ValueError as error:
        given = ", ".join(f"{name}={shown(value)}" for name, value in os.environ.items() if name in _READ_BY_THE_HUB)
        raise UserError(
            f"the Hugging Face hub can't be asked, its variables can't be read ({_first_sentence(error)}): {given}; "
            "unset or correct them, as in HF_ENDPOINT=https://huggingface.co"
        ) from error


def explain_hub_error(error: Exception) -> HubFailure:
    """Explain an exception of huggingface_hub.

    Args:
        error: what any of its functions raised.

    Returns:
        The reason and the remedy, each fit for one line.
    """
    from huggingface_hub import constants, errors  # slow to import

    hub = constants.ENDPOINT
    # A file that is not in the cache either is named in every failure; the reason is what led to it.
    chain = [cause for cause in _causes(error) if not isinstance(cause, errors.LocalEntryNotFoundError)] or [error]
    for cause in chain:
        if isinstance(cause, errors.OfflineModeIsEnabled):
            return HubFailure("HF_HUB_OFFLINE is set", "unset it to use the network", unreachable=True)
        response = getattr(cause, "response", None)
        if response is not None:
            return _explain_answer(response.status_code, response.headers, hub)
    for cause in chain:
        if isinstance(cause, errors.HFValidationError):
            return HubFailure(f"the name is not valid on the hub ({_first_sentence(cause)})", "check its spelling")
        if isinstance(cause, OSError) and cause.errno in NO_SPACE:
            return HubFailure(
                f"the hub's cache {constants.HF_HUB_CACHE} has no room for it ({cause.strerror})",
                "free some space, or set HF_HOME to a folder with more",
            )
        if isinstance(cause, OSError) and cause.filename is not None:
            return HubFailure(
                f"the hub's cache can't be used ({cause.filename}: {cause.strerror})",
                "make it writable, or set HF_HOME to another folder",
            )
        if isinstance(cause, socket.gaierror):
            return HubFailure(f"the address of {hub} can't be found", "check the network and HF_ENDPOINT", True)
        if isinstance(cause, ConnectionRefusedError):
            return HubFailure(f"the connection to {hub} is refused", "check HF_ENDPOINT and the network", True)
        if isinstance(cause, ssl.SSLError):
            reason = f"no secure connection to {hub} ({cause.reason or cause})"
            return HubFailure(reason, "check proxy, certificates and clock", True)
        if isinstance(cause, TimeoutError):
            return HubFailure(f"no answer from {hub} in time", "check the network, or try again later", True)
    for cause in chain:
        # All versions check the size under that name, with an OSError that has no number.
        if isinstance(cause, OSError) and str(cause).startswith("Consistency check failed"):
            return HubFailure("the file has another size than the hub announced", "try again")
        if isinstance(cause, errors.FileMetadataError | ValueError | KeyError | TypeError | AttributeError):
            reason = f"the answer of {hub} is not the hub's ({type(cause).__name__}: {_first_sentence(cause)})"
            return HubFailure(reason, "check HF_ENDPOINT and the proxy")
        if type(cause).__module__.startswith(_HTTP_LIBRARIES):
            reason = f"the connection to {hub} broke ({type(cause).__name__})"
            return HubFailure(reason, "check the network, and try again", True)
    return HubFailure(f"{type(error).__name__}: {_first_sentence(error)}", "try again, or download it by hand")


def _explain_answer(status: int, headers: Mapping[str, str], hub: str) -> HubFailure:
    code, message, http = headers.get("X-Error-Code"), headers.get("X-Error-Message", ""), f"HTTP {status}"
    if code == "GatedRepo":
        return HubFailure(f"access is on request only ({http})", f"request it at {hub}, then {_LOG_IN}")
    if code == "RevisionNotFound":
        return HubFailure(f"the hub has no such revision of it ({http})", "give a branch, a tag or a full commit hash")
    if code == "EntryNotFound":
        return HubFailure(f"the hub has no such file in it ({http})", "check the name and the revision")
    if status == 401 and "Invalid credentials" in message:
        return HubFailure(f"the token is not valid on the hub ({http})", "renew it with `hf auth login` or in HF_TOKEN")
    if status in (401, 404):
        reason = f"the hub has nothing of that name that is open to you ({http})"
        return HubFailure(reason, f"check the spelling; if it is private, {_LOG_IN}")
    if status == 403:
        return HubFailure(f"your account may not read it ({http})", f"{_LOG_IN}, of an account that may")
    if status == 429:
        return HubFailure(f"too many requests to the hub ({http})", "wait some minutes, or log in", True)
    if status >= 500:
        return HubFailure(f"{hub} is out of order ({http})", "try again later", True)
    return HubFailure(f"the answer of the hub is {http} {_short(message)}".rstrip(), "try again later")


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Follow an exception to its causes, through suppressed ones too: the HTTP libraries suppress the system's."""
    seen: list[BaseException] = []
    current: BaseException | None = error
    while current is not None and current not in seen:
        yield current
        seen.append(current)
        current = current.__cause__ or current.__context__


def _first_sentence(error: BaseException) -> str:
    return _short(" ".join(str(error).split()).split(". ")[0].rstrip("."))


def _short(text: str) -> str:
    """Make untrusted text printable, and short enough for a line."""
    text = "".join(character if character.isprintable() else "?" for character in text)
    return text if len(text) <= 160 else text[:159] + "…"
