"""What an operation tells: the events, their crossings, and that nothing else has a say in them."""

from typing import Any

import msgspec
import pytest

from engine.event_making import events_of
from engine.events import EVENTS, AnyEvent, EventType, ReservationHeld, StockEvent
from engine.ledger import Levels, Operation, OperationKind, RowChange

AT_MS = 1_795_454_182_973
AT = "2026-11-23T17:16:22.973Z"


def operation(
    kind: OperationKind = OperationKind.MOVE, *changes: RowChange, detail: tuple[Any, ...] = ()
) -> Operation:
    return Operation(kind, "the id", "acme", "le eds", "key:1", "print", changes, detail)


def change(
    before: tuple[int, ...], after: tuple[int, ...], *, sku: str = "tea", version: int = 2
) -> RowChange:
    deltas = Levels(*[b - a for a, b in zip(before, after, strict=True)])
    return RowChange(sku, version, Levels(*after), deltas)


def told(one: Operation) -> list[AnyEvent]:
    return events_of(one, sequence=7, at_ms=AT_MS, partition=3)


def types(one: Operation) -> list[str]:
    return [event.type_name for event in told(one)]


@pytest.mark.parametrize(
    ("before", "after", "crossed"),
    [
        # on_hand, reserved, safety_stock, deficit, low_stock_threshold
        ((10, 0, 0, 0, 0), (1, 0, 0, 0, 0), []),
        ((10, 0, 0, 0, 3), (4, 0, 0, 0, 3), []),
        ((10, 0, 0, 0, 3), (3, 0, 0, 0, 3), ["stock.low"]),
        ((3, 0, 0, 0, 3), (2, 0, 0, 0, 3), []),
        ((2, 0, 0, 0, 3), (9, 0, 0, 0, 3), []),
        ((10, 0, 0, 0, 3), (10, 10, 0, 0, 3), ["stock.low", "stock.out"]),
        ((5, 0, 2, 0, 0), (5, 3, 2, 0, 0), ["stock.out"]),
        ((5, 3, 2, 0, 0), (5, 4, 2, 0, 0), []),
        ((5, 3, 2, 0, 0), (6, 3, 2, 0, 0), ["stock.back"]),
        ((0, 0, 0, 0, 0), (1, 0, 0, 0, 0), ["stock.back"]),
        ((5, 5, 0, 0, 0), (3, 5, 0, 0, 0), ["stock.shortfall"]),
        ((3, 5, 0, 0, 0), (2, 5, 0, 0, 0), []),
        ((6, 5, 0, 0, 0), (3, 5, 0, 0, 0), ["stock.out", "stock.shortfall"]),
        # A threshold that is put above what there is crosses it, too; so do units kept back.
        ((5, 0, 0, 0, 0), (5, 0, 0, 0, 5), ["stock.low"]),
        ((5, 0, 0, 0, 5), (5, 0, 0, 0, 0), []),
        ((5, 0, 0, 0, 0), (5, 0, 9, 0, 0), ["stock.out"]),
        # And so do units that are held back while tills are silent.
        ((5, 0, 0, 0, 0, 0), (5, 0, 0, 0, 0, 5), ["stock.out"]),
        ((5, 0, 0, 0, 0, 5), (5, 0, 0, 0, 0, 4), ["stock.back"]),
    ],
)
def test_a_crossing_fires_once_and_a_change_always(
    before: tuple[int, ...], after: tuple[int, ...], crossed: list[str]
) -> None:
    assert types(operation(OperationKind.MOVE, change(before, after))) == [
        "stock.changed",
        *crossed,
    ]


def test_an_event_says_what_the_row_is_and_where_it_stands() -> None:
    one = operation(OperationKind.MOVE, change((10, 2, 1, 0, 4), (6, 2, 1, 0, 4), version=9))
    changed, low = told(one)
    assert msgspec.to_builtins(changed) == {
        "type": "stock.changed",
        "id": f"{AT_MS}-3-7-0",
        "source": "/v1/merchants/acme/locations/le%20eds",
        "subject": "tea",
        "time": AT,
        "specversion": "1.0",
        "datacontenttype": "application/json",
        "data": {
            "merchant": "acme",
            "location": "le eds",
            "sku": "tea",
            "version": 9,
            "on_hand": 6,
            "reserved": 2,
            "safety_stock": 1,
            "available": 3,
            "shortfall": 0,
            "deficit": 0,
            "low_stock_threshold": 4,
            "offline_buffer": 0,
            "backordered": 0,
            "operation": "move",
            "as_of": AT,
        },
    }
    assert isinstance(low, StockEvent)
    assert low.data == changed.data
    assert (low.id, low.type_name) == (f"{AT_MS}-3-7-1", "stock.low")


@pytest.mark.parametrize(
    ("kind", "detail", "expected"),
    [
        (
            OperationKind.RESERVE,
            (900_000, "cart 1", [], AT_MS),
            {"state": "held", "lines": [("tea", 2)], "expires_at": AT, "order_ref": "cart 1"},
        ),
        (
            OperationKind.CONFIRM,
            ("order 1", AT_MS),
            {"state": "confirmed", "lines": None, "order_ref": "order 1"},
        ),
        (
            OperationKind.EXTEND,
            (AT_MS, 0, "operation"),
            {"state": "held", "lines": None, "expires_at": AT},
        ),
        (
            OperationKind.AMEND,
            ("operation", [["tea", 3]], "held", AT_MS),
            {"state": "held", "lines": [("tea", 3)], "expires_at": AT},
        ),
        (
            OperationKind.COMMIT,
            ("held", 0, [["tea", 1]]),
            {"state": "committed", "lines": [("tea", 2)], "picked": [("tea", 1)]},
        ),
        (
            OperationKind.RELEASE,
            ("held", 0, "changed my mind"),
            {"state": "released", "lines": [("tea", 2)], "reason": "changed my mind"},
        ),
        (OperationKind.EXPIRE, ("held", 0), {"state": "expired", "lines": [("tea", 2)]}),
    ],
)
def test_a_reservation_tells_what_became_of_it(
    kind: OperationKind, detail: tuple[Any, ...], expected: dict[str, Any]
) -> None:
    changes = []
    if expected["lines"] is not None:
        after = (9, 2, 0, 0, 0) if kind is OperationKind.RESERVE else (9, 0, 0, 0, 0)
        changes = [change((9, 2 - after[1], 0, 0, 0), after)]
    *rows, last = told(operation(kind, *changes, detail=detail))
    assert [event.type_name for event in rows] == ["stock.changed"] * len(changes)
    assert (last.subject, last.id) == ("the id", f"{AT_MS}-3-7-{len(rows)}")
    data: Any = msgspec.to_builtins(last.data)
    for name in ("lines", "picked"):
        if data[name] is not None:
            data[name] = [(line["sku"], line["quantity"]) for line in data[name]]
    named = {"merchant": "acme", "location": "le eds", "reservation": "the id", "as_of": AT}
    assert {name: value for name, value in data.items() if value is not None} == {
        **{name: value for name, value in expected.items() if value is not None},
        **named,
    }


def test_every_type_has_its_event_and_comes_back_from_its_json() -> None:
    assert list(EVENTS) == list(EventType)
    for one in EVENTS.values():
        assert one.__struct_config__.tag == one.type_name
    (*_, held) = told(
        operation(
            OperationKind.RESERVE,
            change((9, 0, 0, 0, 0), (9, 2, 0, 0, 0)),
            detail=(1, "", [], AT_MS),
        )
    )
    back = msgspec.json.decode(msgspec.json.encode(held), type=AnyEvent)
    assert isinstance(back, ReservationHeld)
    assert back == held


def test_what_changes_neither_row_nor_reservation_tells_nothing() -> None:
    assert told(operation(OperationKind.REBUILD, detail=("store", "", 16))) == []


@pytest.mark.parametrize(
    ("state", "before", "told_of"),
    [
        ("degraded", "live", ["location.degraded"]),
        ("degraded", "degraded", []),
        ("catching_up", "degraded", ["location.catching_up"]),
        ("live", "catching_up", ["location.live"]),
    ],
)
def test_a_location_is_told_of_when_its_tills_change_and_not_when_it_holds_back_more(
    state: str, before: str, told_of: list[str]
) -> None:
    since_ms = 0 if state == "live" else AT_MS
    one = operation(OperationKind.OFFLINE, detail=(state, since_ms, [["tea", 3]], before))
    assert types(one) == told_of
    for event in told(one):
        assert event.subject == "le eds"
        assert getattr(event.data, "since", "") == (None if state == "live" else AT)


def test_a_shortfall_names_whom_it_endangers_and_how_it_ended() -> None:
    endangered = [["rsv_3_b", 2, "held"], ["rsv_3_a", 1, "confirmed"]]
    (recorded,) = told(operation(OperationKind.SHORTFALL, detail=("tea", 3, 0, "sale", endangered)))
    data = msgspec.to_builtins(recorded.data)
    assert (recorded.type_name, recorded.subject) == ("shortfall.recorded", "tea")
    assert [one["reservation"] for one in data["endangered"]] == ["rsv_3_b", "rsv_3_a"]
    (closed,) = told(operation(OperationKind.SHORTFALL, detail=("tea", 0, 0, "receive", [])))
    assert closed.type_name == "shortfall.closed"
    assert msgspec.to_builtins(closed.data)["how"] == "receive"
