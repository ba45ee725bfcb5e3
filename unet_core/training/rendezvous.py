"""Brings the workers of TF_CONFIG together.

TensorFlow's own strategy waits for the others without end, deaf to Ctrl-C. So the workers first
meet here: each calls worker 0, which answers when all have called, and only then TensorFlow starts.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import socket
import time
from collections.abc import Callable

import tensorflow as tf

from unet_core.errors import UserError

_SECONDS_TO_WAIT = 600
_GREETING = b"unet_core worker "
_GO = b"go\n"
_EXAMPLE = (
    '{"cluster": {"worker": ["host0:2222", "host1:2222"]}, "task": {"type": "worker", "index": 0}}'
)


@dataclasses.dataclass(frozen=True)
class Cluster:
    """What TF_CONFIG says: host:port of every worker, the chief first, and which one this is."""

    addresses: tuple[str, ...]
    number: int

    @classmethod
    def from_environment(cls) -> Cluster:
        """Reads TF_CONFIG.

        Raises:
            UserError: If it is missing or wrong; the message shows an example.
        """
        text = os.environ.get("TF_CONFIG", "")
        try:
            config = json.loads(text)
            jobs = {job: list(addresses) for job, addresses in config["cluster"].items()}
            job, index = config["task"]["type"], int(config["task"]["index"])
            chiefs = jobs.pop("chief", [])
            addresses = (*chiefs, *jobs.pop("worker"))
            number = index if job == "chief" else index + len(chiefs)
            valid = all(re.fullmatch(r"[^:]+:\d+", address) for address in addresses)
            if jobs or index < 0 or job not in ("chief", "worker") or not valid:
                raise ValueError(text)
            if number >= (len(chiefs) if job == "chief" else len(addresses)):
                raise ValueError(text)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(
                f"`strategy` multi_worker needs the environment variable TF_CONFIG, such as "
                f"{_EXAMPLE}, with an index from 0 for each worker. Received {text!r}."
            ) from error
        return cls(addresses, number)


def connect(should_stop: Callable[[], bool] = lambda: False) -> tf.distribute.Strategy:
    """Returns the strategy over all workers of TF_CONFIG as soon as all have come.

    Args:
        should_stop: Asked about every second while they are waited for.

    Raises:
        UserError: If TF_CONFIG is wrong, a port is taken, or a worker does not come in ten minutes.
        KeyboardInterrupt: If `should_stop()` is true while waiting.
    """
    cluster = Cluster.from_environment()
    deadline = time.monotonic() + _SECONDS_TO_WAIT

    def go_on() -> bool:
        if should_stop():
            raise KeyboardInterrupt
        return time.monotonic() < deadline

    if cluster.number == 0:
        _wait_for_calls(cluster, go_on)
    else:
        _call_chief(cluster, go_on)
    try:
        return tf.distribute.MultiWorkerMirroredStrategy()
    except (RuntimeError, ValueError, tf.errors.OpError) as error:
        raise _cannot_start(cluster, str(error).strip().splitlines()[0]) from error


def _wait_for_calls(cluster: Cluster, go_on: Callable[[], bool]) -> None:
    """Waits until every other worker has called, and lets all go on."""
    callers: dict[int, socket.socket] = {}
    try:
        server = socket.create_server(("", int(cluster.addresses[0].rpartition(":")[2])))
    except OSError as error:
        raise _cannot_start(cluster, error.strerror or str(error)) from error
    with server:
        server.settimeout(1)
        while len(callers) < len(cluster.addresses) - 1:
            if not go_on():
                missing = [
                    address
                    for number, address in enumerate(cluster.addresses)
                    if number and number not in callers
                ]
                raise UserError(
                    f"Waited {_SECONDS_TO_WAIT} s for {', '.join(missing)}. Start every worker of "
                    "TF_CONFIG, and open their ports to one another."
                )
            try:
                caller, _ = server.accept()
                caller.settimeout(1)
                words = caller.recv(len(_GREETING) + 8)
            except OSError:
                continue
            number = words.removeprefix(_GREETING)
            if words.startswith(_GREETING) and number.isdigit():
                # One that calls again has given up its earlier call.
                callers[int(number)] = caller
    for caller in callers.values():
        with caller:
            caller.sendall(_GO)


def _call_chief(cluster: Cluster, go_on: Callable[[], bool]) -> None:
    """Calls worker 0 until it says that all have come."""
    host, _, port = cluster.addresses[0].rpartition(":")
    while go_on():
        try:
            with socket.create_connection((host, int(port)), timeout=1) as chief:
                chief.sendall(_GREETING + str(cluster.number).encode())
                answer = b""
                while go_on():
                    try:
                        answer = chief.recv(len(_GO))
                        break
                    except TimeoutError:
                        continue
                if answer == _GO:
                    return
        except OSError:
            pass
        time.sleep(0.5)
    raise UserError(
        f"Waited {_SECONDS_TO_WAIT} s for worker 0 ({cluster.addresses[0]}). Start every worker of "
        "TF_CONFIG, and open their ports to one another."
    )


def _cannot_start(cluster: Cluster, reason: str) -> UserError:
    return UserError(
        f"Worker {cluster.number} ({cluster.addresses[cluster.number]}) cannot start ({reason}). "
        "Check that its port is free and that TF_CONFIG lists the same addresses on all workers."
    )
