"""The workers of one run: which of them this process is, and what they tell one another.

A worker is one process of a `tf.distribute.MultiWorkerMirroredStrategy`; under any other strategy
there is one. The chief, worker 0, alone writes.
"""

from __future__ import annotations

import contextlib
import hashlib
import pathlib
import re
import uuid
from collections.abc import Iterator, Sequence

import numpy as np
import tensorflow as tf

from unet_core.errors import UserError


class Workers:
    """The workers that train under one strategy.

    Attributes:
        count: How many there are.
        number: Which one this process is, from 0.
        addresses: host:port of each; empty if there is only one.
    """

    def __init__(self, strategy: tf.distribute.Strategy):
        # Without a cluster, the resolver of a strategy is None or lists no address.
        resolver = strategy.cluster_resolver
        jobs = resolver.cluster_spec().as_dict() if resolver else {}
        self._chiefs = len(jobs.get("chief", []))
        self.addresses: list[str] = [*jobs.get("chief", []), *jobs.get("worker", [])]
        self.count = max(1, len(self.addresses))
        self.number = 0
        if self.addresses:
            self.number = self._number_of(resolver.task_type, resolver.task_id)
        self._strategy = strategy
        self._gather = tf.function(self._gather_in_graph)

    @property
    def is_chief(self) -> bool:
        """Whether this worker writes what the run leaves behind."""
        return self.number == 0

    def gather(self, values: Sequence[int]) -> np.ndarray:
        """Returns the values of all workers, [workers, n] int64; every worker must call it."""
        if self.count == 1:
            return np.asarray([values], np.int64)
        rows = self._gather(tf.constant(values, tf.int64)).numpy()
        return rows[:: len(rows) // self.count]

    def check_same(self, **texts: str) -> None:
        """Checks that each text is the same on all workers; every worker must call it.

        Raises:
            UserError: If one is not; the message names it and the workers.
        """
        digests = [
            int.from_bytes(hashlib.sha256(text.encode()).digest()[:7], "big")
            for text in texts.values()
        ]
        gathered = self.gather(digests)
        for name, column in zip(texts, gathered.T, strict=True):
            differing = np.flatnonzero(column != column[0]).tolist()
            if differing:
                raise UserError(
                    f"The {name} of {self._list(differing)} differ from those of worker 0 "
                    f"({self.addresses[0]}). Start all workers with the same flags, data and run "
                    "folder; only the index in TF_CONFIG differs."
                )

    def check_folder(self, folder: pathlib.Path) -> None:
        """Checks that all workers see the same `folder`; every worker must call it.

        The chief writes a file there and removes it when all have looked for it. The folder exists
        where the chief is.

        Raises:
            UserError: If a worker does not see the chief's file.
        """
        if self.count == 1:
            return
        token = int(self.gather([uuid.uuid4().int >> 66])[0, 0])
        mark = folder / f"seen-by-all-workers-{token}"
        if self.is_chief:
            mark.touch()
        try:
            self.gather([0])  # Nobody looks before the chief has written.
            seen = self.gather([mark.exists()])[:, 0]
        finally:
            if self.is_chief:
                mark.unlink(missing_ok=True)
        unseeing = np.flatnonzero(seen == 0).tolist()
        if unseeing:
            raise UserError(
                f"{folder}: {self._list(unseeing)} cannot see what worker 0 "
                f"({self.addresses[0]}) writes there. Put `run_dir` on storage that all workers "
                "share, under one path."
            )

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        """Turns what TensorFlow says when another worker is lost into one message.

        Raises:
            UserError: If a worker has died or hangs; TensorFlow tells after some seconds.
        """
        try:
            yield
        except (
            tf.errors.UnavailableError,
            tf.errors.AbortedError,
            tf.errors.DeadlineExceededError,
            tf.errors.InternalError,
            tf.errors.CancelledError,
        ) as error:
            if self.count == 1:
                raise
            tasks = re.findall(r"/job:(\w+)(?:/replica:\d+)?/task:(\d+)", error.message)
            named = {self._number_of(job, int(task)) for job, task in tasks} - {self.number}
            lost = sorted(named) or [n for n in range(self.count) if n != self.number]
            raise UserError(
                f"Lost {self._list(lost)}: it has ended or does not answer, so worker "
                f"{self.number} stops. Look at its own messages; then start the same command again "
                "on all workers: the run goes on from its last checkpoint."
            ) from error

    def _number_of(self, job: str, task: int) -> int:
        return task if job == "chief" else task + self._chiefs

    def _list(self, numbers: Sequence[int]) -> str:
        return " or ".join(f"worker {number} ({self.addresses[number]})" for number in numbers)

    def _gather_in_graph(self, values):
        per_replica = self._strategy.run(lambda: values[None])
        return self._strategy.gather(per_replica, axis=0)
