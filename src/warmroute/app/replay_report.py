"""What `warmroute replay` prints: a table for people, JSON for machines, decoded events one by one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import msgspec
from rich.console import Console
from rich.table import Table

from warmroute.app import recording
from warmroute.app.recording import Published, Recording, WireSample, WireSamples
from warmroute.app.replay import Judged, judge
from warmroute.core.wire import ReplayBatch, decode_batch, decode_pub, decode_replay
from warmroute.core.wire.events import RejectedEvent
from warmroute.errors import RecordingError, WireError
from warmroute.types import Medium


class SampleSummary(msgspec.Struct):
    """What became of one release's frames."""

    version: str
    batches: int = 0
    events: int = 0
    replayed: int = 0
    rejected: list[str] = msgspec.field(default_factory=list)


class JudgedSamples(msgspec.Struct):
    """What became of a file of wire samples."""

    file: str
    samples: list[SampleSummary]


def run(paths: Sequence[str], console: Console, *, as_json: bool, events: bool) -> int:
    """Replay files and print what became of them; 1 if one could not be read, else 0."""
    failed = 0
    results: list[Judged | JudgedSamples] = []
    for path in paths:
        try:
            read = recording.read(path)
            if events:
                for line in event_lines(read):
                    console.out(line, highlight=False)
            else:
                results.append(judge(read) if isinstance(read, Recording) else summarise(read))
        except RecordingError as error:
            failed = 1
            Console(stderr=True).print(f"warmroute replay: {error}", highlight=False, markup=False, soft_wrap=True)
    if as_json and not events:
        console.out(msgspec.json.encode(results).decode(), highlight=False)
    elif not events:
        show(console, results)
    return failed


def event_lines(read: Recording | WireSamples) -> Iterator[str]:
    """Every decoded event as one JSON object: what it says, and which message it came in."""
    if isinstance(read, Recording):
        published = [("", record.frames) for record in read.records if isinstance(record, Published)]
    else:
        published = [(sample.version, frames) for sample in read.samples for frames in sample.pub]
    for version, encoded in published:
        where: dict[str, object] = {"file": read.path}
        if version:
            where["version"] = version
        try:
            topic, seq, payload = decode_pub(encoded)
            where |= {"topic": bytes(topic).decode("utf-8", "replace"), "seq": seq}
            batch = decode_batch(payload)
        except WireError as error:
            yield _line(where | {"event": "undecodable", "reason": error.reason, "detail": error.detail})
            continue
        for event in (*batch.events, *batch.rejected):
            kind = "rejected" if isinstance(event, RejectedEvent) else type(event).__name__
            yield _line(where | {"ts": batch.ts, "rank": batch.rank, "event": kind} | _fields(event))


def summarise(read: WireSamples) -> JudgedSamples:
    """Decode every frame of every release."""
    return JudgedSamples(read.path, [_summary(sample) for sample in read.samples])


def _summary(sample: WireSample) -> SampleSummary:
    summary = SampleSummary(sample.version)
    for encoded in sample.pub:
        try:
            batch = decode_batch(decode_pub(encoded)[2])
        except WireError as error:
            summary.rejected.append(str(error))
            continue
        summary.batches += 1
        summary.events += len(batch.events)
        summary.rejected += [f"{rejected.reason}: {rejected.detail}" for rejected in batch.rejected]
    for encoded in sample.replay:
        try:
            reply = decode_replay(encoded)
            summary.replayed += isinstance(reply, ReplayBatch)
        except WireError as error:
            summary.rejected.append(str(error))
    return summary


def show(console: Console, results: Sequence[Judged | JudgedSamples]) -> None:
    """Tables: recordings, their differences with causes, wire samples."""
    judged = [result for result in results if isinstance(result, Judged)]
    if judged:
        table = Table(
            "recording", "engine", "requests", "exact", "batches", "events", "rejected", "at the end", box=None
        )
        for result in judged:
            numbers = (result.requests, result.exact, result.batches, result.events, sum(result.rejected.values()))
            table.add_row(
                result.file.rpartition("/")[2], result.engine, *map(str, numbers), "; ".join(result.trust.values())
            )
        console.print(table)
        _show_misses(console, judged)
        requests, exact = sum(r.requests for r in judged), sum(r.exact for r in judged)
        if requests:
            console.print(f"\n{exact} of {requests} predictions ({exact / requests:.2%}) are what the engine reported.")
    for samples in (result for result in results if isinstance(result, JudgedSamples)):
        table = Table("release", "batches", "events", "replayed", "rejected", box=None)
        for sample in samples.samples:
            counts = (sample.batches, sample.events, sample.replayed)
            table.add_row(sample.version, *map(str, counts), "; ".join(sample.rejected))
        console.print(table)


def _show_misses(console: Console, judged: Sequence[Judged]) -> None:
    if not any(result.misses for result in judged):
        return
    table = Table("recording", "request", "prompt", "predicted", "reported", "cause", "", box=None)
    for result in judged:
        for miss in result.misses:
            name = f"{miss.id}" if miss.tag is None else f"{miss.id} ({miss.tag})"
            numbers = (miss.prompt_tokens, miss.predicted, miss.reported)
            table.add_row(result.file.rpartition("/")[2], name, *map(str, numbers), miss.cause, miss.detail)
    console.print()
    console.print(table)


def _fields(event: object) -> dict[str, object]:
    built: dict[str, object] = msgspec.to_builtins(event, enc_hook=str, builtin_types=(bytes,))
    if isinstance(medium := getattr(event, "medium", None), Medium):
        built["medium"] = medium.name
    return {name: _readable(value) for name, value in built.items()}


def _readable(value: object) -> object:
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, list | tuple):
        return [_readable(item) for item in value]
    return value


def _line(record: dict[str, object]) -> str:
    return msgspec.json.encode(record).decode()
