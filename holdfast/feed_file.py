"""Event files: what `holdfast feed` sends, as CSV or as an EPCIS document.

A CSV has the columns `event_id`, `type`, `sku`, `quantity` and `occurred_at`, and may have
`sequence`, `reason`, `reference` and `supply`. A row that cannot be read is named by its line and
left out; every other is sent, and is booked once however often the file is sent.
"""

import csv
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Final

import msgspec

from engine.feeds import SUPPLY_NOT_FOUND
from holdfast import feed_calls
from holdfast.client import Client
from holdfast.epcis import SUPPLIES, events_of
from holdfast.stock_file import FileRefused, bounded_lines

REQUIRED_COLUMNS: Final = ("event_id", "type", "sku", "quantity", "occurred_at")
COLUMNS: Final = (*REQUIRED_COLUMNS, "sequence", "reason", "reference", "supply")
NUMBERS: Final = ("quantity", "sequence")

BATCH_EVENTS: Final = 500
"""Events in one call."""

MAX_DOCUMENT_BYTES: Final = 64 * 2**20
"""Of an EPCIS document, which is held in memory."""

MAX_KEPT_PROBLEMS: Final = 100
"""Problems that a report names; the rest of what was not taken is counted."""


class Problem(msgspec.Struct, frozen=True):
    """An event that was not taken, was set aside, or named a supply that is not expected.

    `place` is where in the file it is, `detail` says why.
    """

    place: str
    event_id: str
    detail: str


class Report(msgspec.Struct, kw_only=True):
    """What became of a file."""

    applied: int = 0
    duplicate: int = 0
    superseded: int = 0
    quarantined: int = 0
    rejected: int = 0
    problems: list[Problem] = []

    @property
    def events(self) -> int:
        """How many there were."""
        taken = self.applied + self.duplicate + self.superseded
        return taken + self.quarantined + self.rejected

    def note(self, place: str, event_id: str, detail: str) -> None:
        """Keep a problem, unless there are too many already."""
        if len(self.problems) < MAX_KEPT_PROBLEMS:
            self.problems.append(Problem(place, event_id, detail))


class _Numbered(msgspec.Struct, frozen=True):
    """An event, and where in the file it stands; `fault` where it cannot be read."""

    place: str
    event: dict[str, Any]
    fault: str = ""


def send_file(
    client: Client,
    path: Path,
    *,
    merchant: str,
    location: str,
    source: str,
    on_sent: Callable[[int], None],
    supplies: Sequence[str] = SUPPLIES,
) -> Report:
    """Send the events of a file, in their order; `on_sent` is told of each batch.

    `supplies` are the types of transactions that name a supply in an EPCIS document.
    Raises FileRefused and EpcisRefused where the file as a whole is not understood, and what the
    client raises.
    """
    report = Report()
    if path.suffix.lower() in (".json", ".jsonld"):
        with path.open("rb") as file:
            document = file.read(MAX_DOCUMENT_BYTES + 1)
        if len(document) > MAX_DOCUMENT_BYTES:
            raise FileRefused(1, f"is larger than {MAX_DOCUMENT_BYTES} bytes")
        events = events_of(document, supplies)
        _send(client, report, _numbered(events), (merchant, location, source), on_sent)
    else:
        with path.open(encoding="utf-8-sig", newline="") as text:
            _send(client, report, _rows(text), (merchant, location, source), on_sent)
    return report


def _numbered(events: Sequence[dict[str, Any]]) -> Iterator[_Numbered]:
    return (_Numbered(f"event {number}", event) for number, event in enumerate(events, 1))


def _rows(text: Any) -> Iterator[_Numbered]:
    reader = csv.reader(bounded_lines(text), strict=True)
    try:
        header = next(reader, [])
    except csv.Error as fault:
        raise FileRefused(1, f"the header is no CSV: {fault}") from fault
    unknown = [name for name in header if name not in COLUMNS]
    missing = [name for name in REQUIRED_COLUMNS if name not in header]
    if unknown or missing or len(set(header)) != len(header):
        wanted = ", ".join(COLUMNS)
        raise FileRefused(1, f"the columns must be of {wanted}, each once, the first five there")
    while True:
        line = reader.line_num + 1
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as fault:
            yield _Numbered(f"line {line}", {}, f"is no CSV: {fault}")
            continue
        if cells:
            yield _row(f"line {line}", header, cells)


def _row(place: str, header: Sequence[str], cells: Sequence[str]) -> _Numbered:
    if len(cells) != len(header):
        return _Numbered(place, {}, f"has {len(cells)} cells, not {len(header)}")
    event: dict[str, Any] = {
        name: text for name, text in zip(header, cells, strict=True) if text != ""
    }
    for name in NUMBERS:
        if name in event:
            try:
                event[name] = int(event[name])
            except ValueError:
                return _Numbered(place, event, f"{name} is no whole number")
    return _Numbered(place, event)


def _send(
    client: Client,
    report: Report,
    events: Iterable[_Numbered],
    place: tuple[str, str, str],
    on_sent: Callable[[int], None],
) -> None:
    found = iter(events)
    while batch := list(islice(found, BATCH_EVENTS)):
        sound = [one for one in batch if not one.fault]
        for one in batch:
            if one.fault:
                report.rejected += 1
                report.note(one.place, str(one.event.get("event_id", "")), one.fault)
        if sound:
            answer = client.send(feed_calls.take_events(*place, [one.event for one in sound]))
            for verdict in ("applied", "duplicate", "superseded", "quarantined", "rejected"):
                count = getattr(report, verdict) + getattr(answer, verdict)
                setattr(report, verdict, count)
            for one, outcome in zip(sound, answer.data, strict=True):
                if outcome.error is not None:
                    detail = str(outcome.error.get("detail", "was rejected"))
                    report.note(one.place, outcome.event_id or "", detail)
                elif outcome.why == SUPPLY_NOT_FOUND:
                    # Where nothing is expected at all, nothing counts twice.
                    if outcome.expects:
                        detail = (
                            f"was booked, but {one.event.get('sku')} is not expected with "
                            f"{one.event.get('supply')}, but with {', '.join(outcome.expects)}"
                        )
                        report.note(one.place, outcome.event_id or "", detail)
                elif outcome.why:
                    report.note(one.place, outcome.event_id or "", f"set aside: {outcome.why}")
        on_sent(len(batch))
