"""One board of a crew, in a thread of its own: reached, leased and checked before it is given anything.

Every step has a deadline that is kept here, and every measurement is a process that can be killed. A board that fails
or falls silent is tried again with a growing pause, and checked again before it is believed.
"""

from __future__ import annotations

import secrets
import threading
import time
from dataclasses import replace
from importlib import metadata
from typing import TYPE_CHECKING

from tvmcompress import process
from tvmcompress.device import Address, connect, lease
from tvmcompress.errors import TvmcompressError
from tvmcompress.trials import board_key, target_key
from tvmcompress.tuning.bench import Job, verdict
from tvmcompress.tuning.children import Outcome
from tvmcompress.wire import PROTOCOL, BoardError, Control

if TYPE_CHECKING:
    from tvmcompress.tuning.crew import Crew

STEP_S = 5.0  # to connect, to ask
LEASE_S = 120.0
RENEW_S = 20.0
BACK_OFF_S = (0.5, 1.0, 2.0, 4.0, 8.0, 15.0)
SETTLE_S = 3.0  # after a failure, until the board says how a session ended
TOLERANCE = 0.15  # of the known kernel's time
TRIES = 4  # at it, a second apart
NEW_NORMAL = 10  # checks that were too slow, after which that is how fast the board is


class Unfit(TvmcompressError):
    """A board that can never do what is asked."""


class Board:
    """`usable`: leased and checked. `settled`: it is known whether it is. `error`: why it is not."""

    def __init__(self, address: Address, crew: Crew) -> None:
        self.address, self.crew = address, crew
        self.control: Control | None = None
        self.key = ""
        self.cores = 0
        self.usable = self.settled = False
        self.error: TvmcompressError | None = None
        self.failures = self.slow = 0
        self.thread = threading.Thread(target=self.live, daemon=True, name=address.text)

    def start(self) -> None:
        with process.interrupts_wait():
            self.thread.start()

    def live(self) -> None:
        while not self.crew.closed:
            try:
                self.attend()
            except Unfit as error:
                self.leave("unfit", error)
                return
            except TvmcompressError as error:
                self.leave("away", error)
                self.rest(BACK_OFF_S[min(self.failures, len(BACK_OFF_S) - 1)])
                self.failures += 1
                continue
            except KeyboardInterrupt:  # the crew is closing
                break
            except Exception as error:  # an answer that no board of ours gives: who waits for it must hear of it
                self.leave("unfit", Unfit(f"device {self.address.text}: cannot be used: {error!r}"[:200]))
                return
            order = self.crew.take(RENEW_S)
            if order is None:
                continue
            try:
                self.crew.deliver(order, self.attempt(order.job))
            except KeyboardInterrupt:
                break
        self.drop()

    def rest(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while not self.crew.closed and time.monotonic() < until:
            time.sleep(min(0.2, seconds))

    # -- trust --------------------------------------------------------------------------------------------------------

    def attend(self) -> None:
        """Makes sure that the board is ours and well. Raises BoardError, or Unfit."""
        if self.control is None:
            self.usable = False
            self.control = connect(self.address, self.crew.tunnels, STEP_S)
            self.fits()
        self.key = lease(self.control, self.crew.holder, LEASE_S)
        if not self.usable:
            self.check()
            self.usable, self.settled, self.error, self.failures = True, True, None, 0
            emulated = bool(self.control.status["emulated"])
            facts = {"board": self.address.text, "state": "ready", "error": "", "emulated": emulated}
            self.crew.tell("board", facts)

    def fits(self) -> None:
        """Whether it can run what is built: raises Unfit."""
        assert self.control is not None
        status, target = self.control.status, self.crew.target
        described, name = status["cpu"], self.address.text
        if status["protocol"] != PROTOCOL:
            older = "its server is older" if status["protocol"] < PROTOCOL else "this side is older"
            raise Unfit(f"device {name}: {older}; bring both to one version of tvmcompress")
        if described["architecture"] != target.arch:
            raise Unfit(f"device {name} is {described['architecture']}, and {target.name} is for {target.arch}")
        if missing := sorted(set(target.features_needed()) - set(described["features"])):
            raise Unfit(
                f"device {name} lacks {', '.join(missing[:6])}, which {target.name} needs; choose its own target"
            )
        theirs, ours = status["versions"]["tvm"], metadata.version("apache-tvm")
        if theirs and theirs != ours:
            raise Unfit(
                f"device {name} has TVM {theirs}, here is {ours}: `tvmcompress device bundle` makes what it needs"
            )
        key = board_key(described, bool(status["emulated"]))
        if not self.crew.agree(key):
            raise Unfit(f"device {name} is of another kind ({key}) than {self.crew.board}")
        self.cores = int(described["cores"])

    def check(self) -> None:
        """The known kernel: its answer, and its time, of an emulated board the answer alone. Raises BoardError."""
        assert self.control is not None
        fact = f"health {self.address.text} {target_key(self.crew.target)}"
        known = self.crew.log.number(fact)
        ms = 0.0
        for attempt in range(TRIES):
            outcome = self.run(self.crew.health, secrets.token_hex(4))
            if outcome.status != "ok":
                said = {"wrong": "a known kernel gives wrong results: "}.get(outcome.status, "a known kernel fails: ")
                raise BoardError(f"device {self.address.text}: {said}{outcome.error}")
            ms = min(outcome.value[0])
            if self.control.status["emulated"]:
                return
            if known is not None and ms <= (1 + TOLERANCE) * known:
                break
            if known is None and attempt:
                break  # the second is warm
            self.rest(0.2 if known is None else 1.0)
        else:
            self.slow += 1
            if self.slow < NEW_NORMAL:
                raise BoardError(
                    f"device {self.address.text}: a known kernel takes {ms / known:.2f} times as long as it did"  # type: ignore[operator]
                    "; is it hot, or busy? `tvmcompress device doctor` looks"
                )
        self.slow = 0
        if known is None or not (1 - TOLERANCE) * known <= ms <= (1 + TOLERANCE) * known:
            self.crew.log.note_number(fact, ms)

    def leave(self, state: str, error: TvmcompressError) -> None:
        new = self.error is None or str(self.error) != str(error)
        self.drop()
        self.error, self.usable, self.settled = error, False, True
        if new:
            self.crew.tell("board", {"board": self.address.text, "state": state, "error": str(error)})

    def drop(self) -> None:
        self.usable = False
        if self.control is not None:
            self.control.close()
            self.control = None

    # -- work ---------------------------------------------------------------------------------------------------------

    def attempt(self, job: Job) -> Outcome:
        """What came of a job; `infra` when the board was lost, with whether it was at work then as its value."""
        name = secrets.token_hex(8)
        outcome = self.run(job, name)
        if outcome.status in ("ok", "wrong"):
            return replace(outcome, conditions=self.conditions())
        try:
            told = self.told(name)
        except TvmcompressError as error:
            return self.lost(error, True)
        match told["state"], told.get("how"):
            case "unknown", _:  # it was started anew since, or never came so far
                return self.lost(BoardError(f"device {self.address.text}: {outcome.error}"), False)
            case "ended", "timeout" | "ended":
                found = Outcome("timeout", error=outcome.error)
            case "ended", "ok":
                found = Outcome("crash" if outcome.status == "crash" else "error", error=outcome.error)
            case _, how:
                found = Outcome("crash", error=f"{how}: {told['said']}" if told["said"] else str(how))
        self.usable = False  # to be checked, before it is believed again
        return found

    def run(self, job: Job, name: str) -> Outcome:
        host, port = self.crew.tunnels.to(self.address.host, self.address.port)
        work = job.work(host, port, f"{self.key} -name={name}", self.cores)
        status, value, error = self.crew.nursery.run(work, job.seconds, lambda: self.crew.closed)
        return verdict(Outcome(status, value, error))

    def told(self, name: str) -> dict:
        """How the board says a session ended; one that still runs, though its client has gone, is ended."""
        assert self.control is not None
        until = time.monotonic() + SETTLE_S
        while True:
            told = self.control.request("session", name=name)
            if told["state"] != "running":
                return told
            if time.monotonic() > until:
                self.control.request("end", name=name)
                until += SETTLE_S
            time.sleep(0.05)

    def lost(self, error: TvmcompressError, at_work: bool) -> Outcome:
        self.leave("away", error)
        return Outcome("infra", at_work, str(error))

    def conditions(self) -> dict:
        """What the board says of its state; nothing when it does not answer: then the next order finds out."""
        try:
            assert self.control is not None
            return dict(self.control.request("status")["conditions"])
        except TvmcompressError:
            return {}
