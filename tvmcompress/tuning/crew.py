"""Several boards of one kind, measuring at once: orders go to whichever is free, and come back when a board is lost.

What was lost with a board is measured again and costs nothing; a candidate that took a board down twice is not given
out any more. While no board is left the crew waits, and goes on when one returns.
"""

from __future__ import annotations

import contextlib
import queue
import secrets
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from tvm import relax

from tvmcompress import process
from tvmcompress.device import CONNECT_SECONDS, find
from tvmcompress.errors import TargetError, TvmcompressError
from tvmcompress.timing.nursery import Nursery
from tvmcompress.tuning.bench import Job
from tvmcompress.tuning.board import Board, Unfit
from tvmcompress.tuning.children import Outcome
from tvmcompress.tuning.tasks import tasks
from tvmcompress.tuning.workshop import Workshop
from tvmcompress.tuning_log import TuningLog
from tvmcompress.tunnels import Route, Tunnels
from tvmcompress.wire import BoardError

DEATHS = 2  # of boards, after which a candidate is not tried any more
SCOUT_S = 10.0  # between questions to a tracker for boards that are new

Tell = Callable[[str, Mapping[str, Any]], None]


@dataclass
class Order:
    """A job that is given out, and how many boards went down with it."""

    index: int
    job: Job
    round: int
    deaths: int = 0


class Crew:
    """Boards at `devices`; raises TargetError when they are of another kind than the target, BoardError when none
    can be reached. Close it: leases end with it."""

    def __init__(
        self, devices: Sequence[str], route: Route | None, workshop: Workshop, log: TuningLog, tell: Tell
    ) -> None:
        self.devices, self.target, self.log, self._tell = list(devices), workshop.target, log, tell
        self.tunnels = Tunnels(route or Route(), CONNECT_SECONDS)
        self.nursery = Nursery()
        self.holder = secrets.token_hex(8)
        self.health = health_job(workshop)
        self.boards: list[Board] = []
        self.board = ""
        self.closed = False
        self.paused_s = 0.0
        self.round = 0
        self.orders: deque[Order] = deque()
        self.results: queue.SimpleQueue[tuple[int, int, Outcome]] = queue.SimpleQueue()
        self.lock = threading.Condition()
        self.news: queue.SimpleQueue[tuple[str, Mapping[str, Any]]] = queue.SimpleQueue()
        try:
            self.begin()
        except BaseException:
            self.close()
            raise
        with process.interrupts_wait():
            threading.Thread(target=self.scout, daemon=True, name="scout").start()

    @property
    def at_once(self) -> int:
        return max(sum(board.usable for board in self.boards), 1)

    def tell(self, name: str, facts: Mapping[str, Any]) -> None:
        """From a board's thread: it is passed on in ours."""
        self.news.put((name, facts))

    def begin(self) -> None:
        """Waits until the boards are ready, or have said why they are not."""
        errors: list[TvmcompressError] = []
        for text in self.devices:
            try:
                self.add(find(text, self.tunnels, CONNECT_SECONDS))
            except BoardError as error:
                errors.append(error)
        while any(not board.settled for board in self.boards):
            self.pass_on()
            time.sleep(0.02)
        self.pass_on()
        if not any(board.usable for board in self.boards):
            unfit = [board.error for board in self.boards if isinstance(board.error, Unfit)]
            failed: list[TvmcompressError] = [board.error for board in self.boards if board.error] + errors
            raise TargetError(str(unfit[0])) if unfit else failed[0]
        for missing in errors:
            self._tell("board", {"board": "", "state": "away", "error": str(missing)})

    def add(self, addresses: Sequence[Any]) -> None:
        known = {board.address for board in self.boards}
        for address in addresses:
            if address not in known:
                board = Board(address, self)
                self.boards.append(board)
                board.start()

    def scout(self) -> None:
        """Boards that register with a tracker later take part, also under another address than before."""
        last = time.monotonic()
        while not self.closed:
            time.sleep(0.5)
            if time.monotonic() - last < SCOUT_S:
                continue
            for text in self.devices:
                with contextlib.suppress(TvmcompressError):  # a tracker that is away is asked again
                    self.add(find(text, self.tunnels, CONNECT_SECONDS) if "@" in text else [])
            last = time.monotonic()

    # -- orders -------------------------------------------------------------------------------------------------------

    def measure(self, jobs: Sequence[Job]) -> Iterator[tuple[int, Outcome]]:
        """See `bench.Bench`. What is still out when this is closed is forgotten."""
        self.round += 1
        for index, job in enumerate(jobs):
            if job.built:
                self.give(Order(index, job, self.round))
            else:
                self.results.put((self.round, index, Outcome("error", error="nothing was built")))
        left, alone = len(jobs), 0.0
        try:
            while left:
                self.pass_on()
                begun = time.monotonic()
                try:
                    number, index, outcome = self.results.get(timeout=0.2)
                except queue.Empty:
                    alone = self.wait_alone(alone, time.monotonic() - begun)
                    continue
                if alone:
                    alone = self.resume()
                if number == self.round:
                    left -= 1
                    yield index, outcome
        finally:
            if alone:
                self.resume()
            with self.lock:
                self.orders.clear()
                self.round += 1

    def wait_alone(self, alone: float, waited: float) -> float:
        """How long no board has been there, now that nothing came for a while."""
        if any(board.usable for board in self.boards):
            return self.resume() if alone else 0.0
        if all(isinstance(board.error, Unfit) for board in self.boards):
            raise TargetError(str(self.boards[0].error))
        self.paused_s += waited
        if not alone:
            why = {board.address.text: str(board.error or "") for board in self.boards}
            self._tell("paused", {"boards": why})
        return alone + waited

    def resume(self) -> float:
        self._tell("resumed", {"paused_s": self.paused_s})
        return 0.0

    def pass_on(self) -> None:
        while True:
            try:
                name, facts = self.news.get_nowait()
            except queue.Empty:
                return
            self._tell(name, facts)

    def give(self, order: Order) -> None:
        with self.lock:
            self.orders.append(order)
            self.lock.notify()

    def take(self, seconds: float) -> Order | None:
        """For a board that is ready: the next order, if one comes in time."""
        with self.lock:
            if not self.orders and not self.closed:
                self.lock.wait(seconds)
            return self.orders.popleft() if self.orders and not self.closed else None

    def deliver(self, order: Order, outcome: Outcome) -> None:
        """What came of an order; `infra` sends it to another board, unless boards went down with it before."""
        if outcome.status == "infra":
            order.deaths += bool(outcome.value)
            if order.deaths < DEATHS:
                with self.lock:
                    if order.round == self.round:
                        self.orders.appendleft(order)
                        self.lock.notify()
                return
            said = f"the board went away with it {order.deaths} times, it is not tried again: {outcome.error}"
            outcome = Outcome("crash", error=said)
        self.results.put((order.round, order.index, outcome))

    def agree(self, board: str) -> bool:
        """Whether a board is of the kind of the first; that one decides."""
        with self.lock:
            self.board = self.board or board
            return self.board == board

    def close(self) -> None:
        self.closed = True
        with self.lock:
            self.lock.notify_all()
        for board in self.boards:
            board.thread.join(3.0)
        self.nursery.close()
        self.tunnels.close()


def health_job(workshop: Workshop) -> Job:
    """A product of matrices with its answer: what a board must get right, in its usual time, before it is believed."""
    builder = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType((64, 256), "float32"))
    weights = np.random.default_rng(7).standard_normal((256, 256)).astype(np.float32)
    with builder.function("main", [x]):
        with builder.dataflow():
            y = builder.emit(relax.op.matmul(x, relax.const(weights)))
            out = builder.emit_output(relax.Tuple([y]))
        builder.emit_func_output(out)
    (task,) = tasks(builder.finalize(), workshop.machine, workshop.isa)
    (error,) = workshop.refer([task])
    (outcome,) = workshop.build_untuned([task]) if not error else (Outcome("error", error=error),)
    if outcome.status != "ok":
        raise TvmcompressError(f"the kernel that boards are checked with cannot be built: {outcome.error}")
    return Job(task, [outcome.value], workshop.references[task.workload])
