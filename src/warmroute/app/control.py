"""The control process: starts the processes that serve, takes messages from one to the other, replaces who crashes.

It serves nobody itself and knows neither engines nor requests, so there is little that could end it. It is a loop over
a selector, without asyncio or threads, because it forks: a process that serves is a copy of it, made at any time.

    listening sockets ---- kept open here, so that no waiting connection is lost with a process
    page of load --------- a crashed process's part is cleared here
    channels ------------- one per process; the end of one tells the process that its control is gone: it drains

Invariant: while it is not ending, there is a process for every seat, or one is due.
"""

from __future__ import annotations

import logging
import mmap
import os
import random
import selectors
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from warmroute.app.doors import open_doors
from warmroute.app.limiting import limits_anything
from warmroute.app.reload import Reread, compare, encode_config, refused, said
from warmroute.app.seat import Seat
from warmroute.config.differences import Difference
from warmroute.config.tree import Config
from warmroute.core.sharing import clear_part, page_bytes
from warmroute.edge.channel import ControlEnd
from warmroute.edge.handover import Doors, Offer, Taken
from warmroute.edge.sockets import Sockets, close
from warmroute.errors import ConfigError, WarmrouteError
from warmroute.service.administration import decode_change
from warmroute.service.fellows import Kind, Message
from warmroute.service.ports import Reply
from warmroute.types import Endpoint

_log = logging.getLogger(__name__)

EXIT_USER = 2
"""A process that ends so found its configuration wanting: another one would too. While others serve, that is no reason
for them to end: a file may be mended."""
SHORT_LIFE_S = 10.0
"""Who lives shorter is replaced after a pause, doubled each time."""
PAUSE_S, PAUSE_S_MAX = 0.5, 30.0
PATIENCE_S = 5.0
"""How long a process that takes another's place waits for its engines, while the others serve."""
TAKEOVER_PATIENCE_S = 15.0
"""The same for one that takes the place of another gateway's."""
LAST_S = 5.0
"""What a process may take to end, beyond the time it has to drain."""

PREPARE_S_MAX = 10.0
"""How long processes may take to say whether they could take up a configuration."""
UNDOES = {"remove": ("add", "hold"), "release": ("hold",)}
"""Changes to the fleet that undo others, so that neither need be kept."""

Serve = Callable[[Config, Seat], int]


@dataclass(slots=True)
class _Process:
    """One seat and who sits there."""

    number: int
    pid: int = 0
    """0: nobody."""
    end: ControlEnd | None = None
    started_at: float = 0.0
    ready: bool = False
    failures: int = 0
    """Short lives in a row."""
    due_at: float | None = None
    """When somebody is to be started."""
    generation: int = 0
    """Of the configuration that it has."""
    told: bool = False
    """Whether it knows what operators have changed."""


@dataclass(slots=True)
class _Reload:
    """A configuration that the processes are asked to take up."""

    config: Config
    differing: list[Difference]
    waiting: set[int]
    """Who has not answered."""
    deadline: float
    asker: tuple[int, int] | None
    """Process and number of the question, if it was not a signal."""


class Control:
    """Runs `config.gateway.processes` processes; each of them calls `serve` with its seat."""

    def __init__(self, config: Config, serve: Serve, reread: Reread) -> None:
        self._config = config
        self._serve = serve
        self._reread = reread
        self._gated = config.gateway.keys_file is not None or limits_anything(config.admission)
        self._generation = 0
        self._reload: _Reload | None = None
        self._changes: dict[tuple[str, str], bytes] = {}
        """What operators have changed in the fleet, for who is started later: (what, engine) -> the change."""
        self._doors = Doors()
        self._taken: Taken | None = None
        self._offer: Offer | None = None
        n = config.gateway.processes
        self._page = memoryview(mmap.mmap(-1, page_bytes(n))).cast("d")
        self._processes = [_Process(number) for number in range(n)]
        self._selector = selectors.DefaultSelector()
        self._ending_at: float | None = None
        self._code = 0
        self._announced = False

    def run(self) -> int:
        """Until a signal ends it; the exit code. Raises ConfigError if it cannot listen."""
        self._doors, self._taken = open_doors(self._config)
        with self._signals() as news:
            self._selector.register(news, selectors.EVENT_READ, lambda: self._signalled(news))
            for process in self._processes:
                self._start(process, patience_s=0.0 if self._taken is None else TAKEOVER_PATIENCE_S)
            while any(process.pid for process in self._processes) or self._ending_at is None:
                for key, _ in self._selector.select(self._pause_s()):
                    key.data()
                self._tick(time.monotonic())
        _log.info("all processes have ended")
        return self._code

    # Processes

    def _start(self, process: _Process, patience_s: float = PATIENCE_S) -> None:
        ours, theirs = socket.socketpair()
        sys.stdout.flush()
        sys.stderr.flush()
        try:
            pid = os.fork()
        except OSError:
            close([(ours, theirs)])
            raise
        if pid == 0:
            ours.close()
            self._become(process, theirs, patience_s)
        theirs.close()
        end = ControlEnd(ours)
        process.pid, process.end, process.ready, process.told, process.due_at = pid, end, False, False, None
        process.started_at, process.generation = time.monotonic(), self._generation
        self._selector.register(ours, selectors.EVENT_READ, lambda: self._heard(process, end))

    def _become(self, process: _Process, channel: socket.socket, patience_s: float) -> None:
        """Be the new process, and never come back."""
        code = 1
        try:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # of a terminal: the control process tells
            signal.signal(signal.SIGHUP, signal.SIG_IGN)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            random.seed()  # or all processes would wait equally long before they try again
            self._selector.close()
            if self._offer is not None:
                self._offer.close(forked=True)
            for other in self._processes:
                if other.end is not None:
                    other.end.socket.close()
            doors, n = self._doors, process.number
            for opened in (doors.clients, doors.operators):
                close([*opened[:n], *opened[n + 1 :]])
            seat = Seat(
                process=n,
                processes=len(self._processes),
                clients=doors.clients[n],
                operators=doors.operators[n] if doors.operators else (),
                page=self._page,
                channel=channel,
                patience_s=patience_s,
            )
            code = self._serve(self._config, seat)
        except WarmrouteError as error:
            _log.error("%s", error)
            code = EXIT_USER
        except BaseException:
            _log.exception("process %d failed", process.number)
        finally:
            logging.shutdown()
            os._exit(code)

    def _reap(self) -> None:
        for process in self._processes:
            if process.pid:
                pid, status = os.waitpid(process.pid, os.WNOHANG)
                if pid:
                    self._ended(process, os.waitstatus_to_exitcode(status))

    def _ended(self, process: _Process, code: int) -> None:
        now, number, pid = time.monotonic(), process.number, process.pid
        lived_s, was_ready = now - process.started_at, process.ready
        process.pid, process.ready = 0, False
        if process.end is not None:
            self._selector.unregister(process.end.socket)
            process.end.socket.close()
            process.end = None
        clear_part(self._page, number)
        self._prepared(number, None)
        if self._ending_at is not None:
            self._code = self._code or (1 if code else 0)
            return
        if code == EXIT_USER and not was_ready and not any(other.ready for other in self._processes):
            self._code = EXIT_USER
            self._end()
            return
        pause_s = self._pause_after(process, lived_s)
        process.due_at = now + pause_s
        how = f"signal {-code}" if code < 0 else f"exit code {code}"
        _log.error("process %d (pid %d) ended with %s; another takes its place in %g s", number, pid, how, pause_s)

    def _pause_after(self, process: _Process, lived_s: float) -> float:
        """How long to wait until another takes its place."""
        process.failures = process.failures + 1 if lived_s < SHORT_LIFE_S else 0
        return min(PAUSE_S * 2 ** (process.failures - 2), PAUSE_S_MAX) if process.failures > 1 else 0.0

    def _replace(self, process: _Process, now: float) -> None:
        """Start who is due; if the system has no room for a process now, later."""
        try:
            self._start(process)
        except OSError as error:
            pause_s = max(PAUSE_S, self._pause_after(process, 0.0))
            process.due_at = now + pause_s
            _log.error("process %d cannot be started (%s); again in %g s", process.number, error.strerror, pause_s)

    def _tick(self, now: float) -> None:
        self._reap()
        if self._reload is not None and now > self._reload.deadline:
            late = ", ".join(map(str, sorted(self._reload.waiting)))
            self._end_reload(refused(ConfigError("reload", f"process {late} does not answer", "Try again.")))
        for process in self._processes:
            if process.due_at is not None and now >= process.due_at and self._ending_at is None:
                self._replace(process, now)
            if process.end is not None:
                self._watch(process.end)
            if process.pid and self._ending_at is not None and now > self._ending_at:
                _log.error("process %d (pid %d) does not end: it is killed", process.number, process.pid)
                os.kill(process.pid, signal.SIGKILL)

    def _pause_s(self) -> float:
        """Until something is due: a start, or the look for who does not end."""
        due = [process.due_at for process in self._processes if process.due_at is not None]
        return min(1.0, *(max(0.0, at - time.monotonic()) for at in due)) if due else 1.0

    # Signals

    @contextmanager
    def _signals(self) -> Iterator[socket.socket]:
        """Signals become readable here, so that nothing happens between two lines."""
        news, wakeup = socket.socketpair()
        news.setblocking(False)
        wakeup.setblocking(False)
        before = signal.set_wakeup_fd(wakeup.fileno())
        numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD)
        old = {number: signal.signal(number, lambda *_: None) for number in numbers}
        try:
            yield news
        finally:
            for number, previous in old.items():
                signal.signal(number, previous)
            signal.set_wakeup_fd(before)
            news.close()
            wakeup.close()

    def _signalled(self, news: socket.socket) -> None:
        numbers = set(news.recv(4096))
        if {signal.SIGTERM, signal.SIGINT} & numbers:
            self._end()
        elif signal.SIGHUP in numbers:
            self._begin_reload(None)

    def _end(self) -> None:
        """Have every process drain."""
        if self._ending_at is not None:
            return
        _log.info("draining for at most %g s", self._config.gateway.drain_timeout_s)
        self._ending_at = time.monotonic() + self._config.gateway.drain_timeout_s + LAST_S
        if self._offer is not None:
            self._offer.close()
        close([*self._doors.clients, *self._doors.operators])
        for process in self._processes:
            process.due_at = None
            if process.end is not None:
                process.end.send(Message(Kind.DRAIN))

    # Messages

    def _watch(self, end: ControlEnd) -> None:
        key = self._selector.get_key(end.socket)
        events = selectors.EVENT_READ | (selectors.EVENT_WRITE if end.waiting else 0)
        if key.events != events:
            self._selector.modify(end.socket, events, key.data)

    def _heard(self, process: _Process, end: ControlEnd) -> None:
        end.flush()
        for message in end.receive() or ():  # that it has ended, SIGCHLD tells
            self._take(process, message)

    def _take(self, process: _Process, message: Message) -> None:
        match message.kind:
            case Kind.READY:
                process.ready = True
                self._bring_up_to_date(process)
                self._announce(process)
            case Kind.RELOAD:
                self._send(process.number, Message(Kind.ASKED, number=message.number, status=1), of=process)
                self._begin_reload((process.number, message.number))
            case Kind.PREPARED:
                self._prepared(process.number, message.body.decode() if message.status else None)
            case Kind.ENGINE:
                self._change(process, message)
            case Kind.ASK:
                others = [other for other in self._processes if other is not process and other.ready and other.end]
                for other in others:
                    self._send(other.number, message, of=process)
                self._send(process.number, Message(Kind.ASKED, number=message.number, status=len(others)), of=process)
            case Kind.ANSWER:
                self._send(message.process, message, of=process)
            case _:
                _log.error("process %d says %r, which nobody asked for", process.number, message.kind)

    def _send(self, number: int, message: Message, of: _Process) -> None:
        end = self._processes[number].end
        if end is not None:
            end.send(Message(message.kind, of.number, message.number, message.status, message.body))

    def _announce(self, process: _Process) -> None:
        if self._announced:
            _log.info("process %d (pid %d) serves", process.number, process.pid)
        elif all(each.ready for each in self._processes):
            self._announced = True
            self._stand_in()
            clients = _url(self._config.gateway.host, self._doors.clients, tls=self._config.tls.certificate is not None)
            engines, n = len(self._config.engines), len(self._processes)
            _log.info("listening on %s, %d engines configured, %d processes", clients, engines, n)
            if self._doors.operators:
                admin = self._config.admin
                _log.info("operators are served on %s", _url(admin.host, self._doors.operators, tls=admin.tls))

    def _stand_in(self) -> None:
        """All serve: let the gateway before this one go, and be the one that the next will ask."""
        path = self._config.gateway.handover
        if path is not None:
            self._offer = Offer(path, self._doors, self._end, self._watch_socket, self._selector.unregister)
        if self._taken is not None:
            self._taken.ready()
            self._taken = None

    def _watch_socket(self, readable: socket.socket, call: Callable[[], None]) -> None:
        self._selector.register(readable, selectors.EVENT_READ, call)

    # Changes while it runs

    def _begin_reload(self, asker: tuple[int, int] | None) -> None:
        """Read everything again, and ask all processes whether they could take it up."""
        if self._ending_at is not None:
            return
        if self._reload is not None:
            self._answer_reload(asker, refused(ConfigError("reload", "another one is under way", "Try again.")))
            return
        try:
            config, differing = compare(self._config, self._reread(), gated=self._gated)
        except ConfigError as error:
            self._answer_reload(asker, refused(error))
            return
        ready = {process.number for process in self._processes if process.ready}
        self._reload = _Reload(config, differing, ready, time.monotonic() + PREPARE_S_MAX, asker)
        body = encode_config(config)
        for number in ready:
            self._send(number, Message(Kind.PREPARE, body=body), of=self._processes[number])
        self._prepared(-1, None)  # there may be nobody to ask

    def _prepared(self, number: int, problem: str | None) -> None:
        """A process could take it up, could not, or is gone."""
        if self._reload is None:
            return
        if problem is not None:
            self._end_reload(refused(f"process {number}: {problem}"))
            return
        self._reload.waiting.discard(number)
        if not self._reload.waiting:
            self._config = self._reload.config
            self._generation += 1
            for process in self._processes:
                if process.ready:
                    self._bring_up_to_date(process)
            self._end_reload(said(self._reload.differing))

    def _end_reload(self, reply: Reply) -> None:
        if self._reload is not None:
            asker, self._reload = self._reload.asker, None
            self._answer_reload(asker, reply)

    def _answer_reload(self, asker: tuple[int, int] | None, reply: Reply) -> None:
        if asker is not None:
            number, question = asker
            answer = Message(Kind.ANSWER, number=question, status=reply.status, body=reply.body)
            self._send(number, answer, of=self._processes[number])

    def _bring_up_to_date(self, process: _Process) -> None:
        """Give a process the configuration that holds now, and, if it is new, what operators have changed since."""
        if process.generation != self._generation:
            process.generation = self._generation
            self._send(process.number, Message(Kind.COMMIT, body=encode_config(self._config)), of=process)
        if not process.told:
            process.told = True
            for body in self._changes.values():
                self._send(process.number, Message(Kind.ENGINE, body=body), of=process)

    def _change(self, process: _Process, message: Message) -> None:
        """An operator has changed the fleet by way of this process: the others follow, and who comes later."""
        change = decode_change(message.body)
        for undone in UNDOES.get(change.change, ()):
            self._changes.pop((undone, change.url), None)
        if change.change not in UNDOES:
            self._changes[change.change, change.url] = message.body
        for other in self._processes:
            if other is not process and other.ready:
                self._send(other.number, message, of=process)


def _url(host: str, doors: Sequence[Sockets], *, tls: bool) -> str:
    return Endpoint(host, doors[0][0].getsockname()[1], tls=tls).url
