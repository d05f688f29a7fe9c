"""Noticing that a rank has died or hangs, while all others wait for it inside of MLX.

Beside MLX's own connections, every rank has one to rank 0, over TCP, and a thread that sends a sign of life each
second. A connection that closes means a dead process; silence, a stopped process or a dead machine; and signs of life
that tell of no further step on any rank, that something hangs. Whoever notices says so, and ends its process: nothing
else gets a thread out of a sum that never comes. Rank 0 is the one that speaks, and has the others end with it.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import selectors
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

DEFAULT_TIMEOUT = 300.0  # seconds; as in cfg_pretrain.yaml
_CONNECT_SECONDS = 20.0
_GRACE_SECONDS = 1.0  # for rank 0 to fail by itself, if it has the same mistake as the rank that has reported one
_VERDICT_SECONDS = 10.0  # for the watch to see the end of a process that MLX has seen
_START_SECONDS = 1800.0  # until all ranks have taken a step: reading data, W&B, compiling
_SAVE_SECONDS = 60.0  # for a checkpoint that is being written when another rank is lost


def host_and_process() -> tuple[str, int]:
    """Where this process is found: host name and number."""
    return socket.gethostname(), os.getpid()


def _address_of_first() -> str:
    """An address of rank 0 that the other ranks reach, from what the launcher says; else its host name."""
    try:
        with contextlib.suppress(KeyError, OSError, ValueError, LookupError, TypeError):  # ring
            return str(json.loads(Path(os.environ["MLX_HOSTFILE"]).read_text())[0][0].rpartition(":")[0])
    except AttributeError:  # not a list of addresses
        pass
    for name in ("MLX_JACCL_COORDINATOR", "NCCL_HOST_IP"):
        if address := os.environ.get(name):
            return address.rpartition(":")[0] or address
    return socket.gethostname()


def open_watch(
    rank: int,
    everyone: list[tuple[str, int]],
    from_first: Callable[[Callable[[], Any]], Any],
    gather: Callable[[bool], list[bool]],
) -> RankWatch | None:
    """Connect all ranks with rank 0; None on all of them, and a word from rank 0, if that can't be done.

    Args:
        rank: this rank.
        everyone: host and process of each rank.
        from_first: gives every rank what rank 0's argument returns.
        gather: gives every rank the values of all.
    """
    server: socket.socket | None = None
    connections: dict[int, socket.socket] = {}
    if rank == 0:
        with contextlib.suppress(OSError):
            server = socket.create_server((_address_of_first(), 0))
    offer = from_first(
        lambda: None if server is None else (_address_of_first(), server.getsockname()[1], secrets.token_hex(16))
    )
    if offer is not None:
        address, port, token = offer
        with contextlib.suppress(OSError, ValueError):
            if server is not None:
                connections = _accept(server, token, len(everyone) - 1)
            else:
                connection = socket.create_connection((address, port), timeout=_CONNECT_SECONDS)
                connection.sendall(json.dumps({"token": token, "rank": rank}).encode() + b"\n")
                connections = {0: connection}
    if server is not None:
        server.close()
    if all(gather(len(connections) == (len(everyone) - 1 if rank == 0 else 1))):
        return RankWatch(rank, everyone, connections)
    for connection in connections.values():
        connection.close()
    if rank == 0:
        print(
            "warning: the ranks can't reach rank 0 over TCP; one that dies or hangs may go unnoticed", file=sys.stderr
        )
    return None


def _accept(server: socket.socket, token: str, count: int) -> dict[int, socket.socket]:
    """The connections of `count` ranks, as far as they come in time; strangers are turned away."""
    connections: dict[int, socket.socket] = {}
    end = time.monotonic() + _CONNECT_SECONDS
    while len(connections) < count and (left := end - time.monotonic()) > 0:
        server.settimeout(left)
        connection, _ = server.accept()
        connection.settimeout(_CONNECT_SECONDS)
        hello = b""
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            while not hello.endswith(b"\n") and len(hello) < 200 and (byte := connection.recv(1)):
                hello += byte
            values = json.loads(hello)
            if secrets.compare_digest(values["token"], token):
                connections[int(values["rank"])] = connection
                continue
        connection.close()
    return connections


class RankWatch:
    """The thread that watches over the ranks, from here to `end_in_order`, `end_all` or the end of the process.

    Args:
        rank: this rank.
        everyone: host and process of each rank.
        connections: by rank; of rank 0 to all others, of the others to rank 0.

    `timeout`: seconds of silence, or of standing still, after which a rank is given up. `on_signal`: told of a signal
    that another rank has received. `before_exit`: called with a number of seconds before this process ends because of
    another, to finish what it is writing.
    """

    def __init__(self, rank: int, everyone: list[tuple[str, int]], connections: dict[int, socket.socket]):
        self.timeout = DEFAULT_TIMEOUT
        self.on_signal: Callable[[int], None] | None = None
        self.before_exit: Callable[[float], None] | None = None
        self._rank, self._everyone, self._connections = rank, everyone, connections
        self._moves, self._waits = 0, 0
        self._status: dict[int, tuple[int, bool]] = {}  # of each rank: moves, and whether it waits
        self._silence = dict.fromkeys(connections, 0.0)
        self._still = 0.0  # seconds since any rank has moved
        self._leaving: set[int] = set()  # ranks that have nothing left to do
        self._report: tuple[int, str, float] | None = None  # on rank 0: who has failed, how, and when it was told
        self._ending = False
        self._fails = False  # what rank 0 ends for is a failure
        self._dismissed: float | None = None  # when rank 0 said that it ends
        self._over = threading.Event()  # its process has, too
        self._lock = threading.Lock()  # one message at a time
        self._unread: dict[int, bytes] = dict.fromkeys(connections, b"")
        for connection in connections.values():
            connection.settimeout(_CONNECT_SECONDS)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._thread = threading.Thread(target=self._watch, name="rank watch", daemon=True)
        self._thread.start()

    # ------------------------------------------------------------------------------------------------ main thread

    def moved(self) -> None:
        """Note that this rank has got a step further."""
        self._moves += 1

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Within this, the rank waits for others or for the device."""
        self._waits += 1
        try:
            yield
        finally:
            self._waits -= 1

    def tell_signal(self, number: int) -> None:
        """Let the other ranks know of a signal that has come."""
        self._send_all({"signal": number})

    def end_in_order(self) -> None:
        """End the watch after the block has. On rank 0 the others are free to go; they wait here until they are."""
        if self._rank == 0:
            self._ending = True
            self._send_all({"end": True, "in order": True})
        else:
            self._leaving.add(self._rank)
            self._send_all({"leaving": True})
            self._over.wait()

    def end_all(self) -> None:
        """On rank 0, which has failed: have the others end at once."""
        self._ending = True
        self._send_all({"end": True, "in order": False})

    def report(self, text: str) -> None:
        """On another rank, which has failed: have rank 0 say so, and all end."""
        self._send_all({"failed": text})
        self._over.wait(_GRACE_SECONDS + _SAVE_SECONDS + _VERDICT_SECONDS)

    def await_verdict(self) -> None:
        """After MLX has lost a connection: wait for the watch to find out whose, which ends this process."""
        time.sleep(_VERDICT_SECONDS)

    # ------------------------------------------------------------------------------------------------ the thread

    def _watch(self) -> None:
        selector = selectors.DefaultSelector()
        for rank, connection in self._connections.items():
            selector.register(connection, selectors.EVENT_READ, rank)
        before = next_sign = time.monotonic()
        while not self._ending:
            interval = min(1.0, self.timeout / 8)
            found = selector.select(max(0.0, next_sign - time.monotonic()))
            now = time.monotonic()
            # If this process was stopped itself, all others seem to have been silent meanwhile.
            passed = min(now - before, 2 * interval)
            before = now
            for rank in self._silence:
                self._silence[rank] += passed
            for key, _ in found:
                if not self._receive(key.data):
                    selector.unregister(key.fileobj)
                    self._lost(key.data)
            if now >= next_sign:
                next_sign = now + interval
                self._send_all({"moves": self._moves, "waits": self._waits > 0})
            self._judge(now, passed)

    def _receive(self, rank: int) -> bool:
        """Read what a rank has sent; false if the connection is closed."""
        try:
            content = self._connections[rank].recv(1 << 16)
        except OSError:
            return False
        self._silence[rank] = 0.0
        *lines, self._unread[rank] = (self._unread[rank] + content).split(b"\n")
        for line in lines:
            self._obey(rank, json.loads(line))
        return bool(content)

    def _obey(self, rank: int, message: dict[str, Any]) -> None:
        if "moves" in message:
            status = message["moves"], message["waits"]
            if self._status.get(rank, (0, False))[0] != status[0]:
                self._still = 0.0
            self._status[rank] = status
        elif "signal" in message:
            if self._rank == 0:
                self._send_all(message)
            if self.on_signal is not None:
                self.on_signal(message["signal"])
        elif "failed" in message and self._report is None:
            self._report = rank, message["failed"], time.monotonic()
        elif "leaving" in message:
            self._leaving.add(rank)
        elif "end" in message and self._rank == 0:  # this process has been stopped, and was given up
            self._exit(None)
        elif "end" in message:
            self._dismissed = time.monotonic()
            self._fails = not message["in order"]
            if self._fails:  # rank 0 says why; what MLX has to say of the broken connections would bury that
                os.dup2(os.open(os.devnull, os.O_WRONLY), 2)

    def _lost(self, rank: int) -> None:
        if self._ending or rank in self._leaving:
            return
        if self._dismissed is not None or self._rank in self._leaving:
            self._after_first()
            return
        if self._report is not None and self._report[0] == rank:
            return
        self._exit(f"{self._name(rank)} has died")

    def _after_first(self) -> None:
        """Rank 0 has ended, and this rank may: not before, since launchers end all others as soon as one has failed."""
        self._ending = True
        self._over.set()
        if self._fails and self._rank not in self._leaving:
            self._exit(None)

    def _judge(self, now: float, passed: float) -> None:
        if self._dismissed is not None and now - self._dismissed > _SAVE_SECONDS:
            self._after_first()
        if self._ending:
            return
        if self._report is not None and now - self._report[2] > _GRACE_SECONDS:
            rank, text, _ = self._report
            self._exit(f"{self._name(rank)}: {text}", advise=False)
        silent = [rank for rank, seconds in self._silence.items() if seconds > self.timeout]
        silent = [rank for rank in silent if rank not in self._leaving]
        if silent:
            names = " and ".join(self._name(rank) for rank in silent)
            self._exit(f"{names} gave no sign of life for {self.timeout:g} seconds (rank_timeout)")
        if self._rank == 0:
            own = self._moves, self._waits > 0
            if self._status.get(0, (0, False))[0] != own[0]:
                self._still = 0.0
            self._status[0] = own
            everywhere = len(self._status) == len(self._everyone) and all(moves for moves, _ in self._status.values())
            self._still = 0.0 if self._leaving else self._still + passed
            allowed = self.timeout if everywhere else max(self.timeout, _START_SECONDS)
            if self._still > allowed:
                busy = [rank for rank, (_, waits) in sorted(self._status.items()) if not waits]
                names = " and ".join(self._name(rank) for rank in busy)
                names = names or "the ranks, which all wait for one another or their device,"
                key = " (rank_timeout)" if everywhere else " before the first step"
                self._exit(f"{names} got no further for {allowed:g} seconds{key}")

    def _name(self, rank: int) -> str:
        host, process = self._everyone[rank]
        return f"rank {rank} (process {process} on {host})"

    def _send_all(self, message: dict[str, Any]) -> None:
        content = json.dumps(message).encode() + b"\n"
        with self._lock:
            for connection in self._connections.values():
                with contextlib.suppress(OSError):  # that a connection is broken shows when it is read
                    connection.sendall(content)

    def _speaks(self) -> bool:
        """Whether it is for this rank to say why all end: rank 0, and without it the first rank of each machine."""
        host = self._everyone[self._rank][0]
        return self._rank == 0 or host not in [host for host, _ in self._everyone[1 : self._rank]]

    def _exit(self, reason: str | None, *, advise: bool = True) -> None:
        """End this process, which may be stuck inside of MLX; with a reason, say it and end all others."""
        if reason is not None:
            if self._speaks():
                advice = "; all ranks end here. Start them again, for training with resume=auto" if advise else ""
                sys.stderr.flush()
                os.write(2, f"\nerror: {' '.join(reason.split())}{advice}\n".encode())
            self._send_all({"end": True, "in order": False})
        if self.before_exit is not None:
            with contextlib.suppress(Exception):
                self.before_exit(_SAVE_SECONDS)
        os._exit(1)
