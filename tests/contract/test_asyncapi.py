"""The AsyncAPI document against the events that are made, and its own references."""

import json
from collections.abc import Iterator
from typing import Any, Final, cast

import httpx
import msgspec
import pytest
from jsonschema import Draft202012Validator
from referencing import Registry
from referencing.jsonschema import DRAFT202012

from engine.event_making import events_of
from engine.events import EVENTS, EventType
from engine.ledger import Levels, Operation, OperationKind, RowChange
from engine.store import StoreSettings
from engine.webhooks import Interest, WebhookEndpoint
from gateway import asyncapi, notices
from gateway.app import create_app
from gateway.service import Service


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    return cast(dict[str, Any], json.loads(json.dumps(asyncapi.document("0"))))


def references(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        if isinstance(node.get("$ref"), str):
            yield node["$ref"]
        for one in node.values():
            yield from references(one)
    elif isinstance(node, list):
        for one in node:
            yield from references(one)


def at(document: Any, reference: str) -> Any:
    for part in reference.removeprefix("#/").split("/"):
        document = document[part.replace("~1", "/").replace("~0", "~")]
    return document


def validator(document: dict[str, Any], name: str) -> Draft202012Validator:
    """Return what checks a message of the type `name` by the document's own schema."""
    payload = at(document, f"#/components/messages/{name}")["payload"]["$ref"]
    resource = DRAFT202012.create_resource(document)
    registry: Any = Registry().with_resource("urn:holdfast", resource)
    return Draft202012Validator({"$ref": f"urn:holdfast{payload}"}, registry=registry)


def operation(kind: OperationKind, detail: tuple[Any, ...]) -> Operation:
    """Make an operation whose row goes from plenty to short, or back."""
    levels, deltas = Levels(1, 3, 1, 0, 5), Levels(-9, 1, 0, 0, 0)
    change = RowChange("caf\u00e9", 7, levels, deltas)
    back = RowChange("tea", 1, Levels(5, 0, 0, 0, 0), Levels(5, 0, 0, 0, 0))
    return Operation(kind, "rsv_0_1", "m", "l", "key:1", "", (change, back), detail)


def test_the_document_has_the_form_of_asyncapi_3(document: dict[str, Any]) -> None:
    assert document["asyncapi"] == "3.0.0"
    assert {"title", "version"} <= set(document["info"])
    assert set(document) <= {
        "asyncapi", "id", "info", "servers", "defaultContentType", "channels", "operations",
        "components",
    }  # fmt: skip
    sent: dict[str, set[str]] = {}
    for one in document["operations"].values():
        assert one["action"] in ("send", "receive")
        channel = at(document, one["channel"]["$ref"])
        prefix = one["channel"]["$ref"] + "/messages/"
        names = {message["$ref"].removeprefix(prefix) for message in one["messages"]}
        assert names <= set(channel["messages"])
        sent.setdefault(one["channel"]["$ref"], set()).update(names)
    # Every message of a channel is sent or received by some operation.
    for name, channel in document["channels"].items():
        assert sent[f"#/channels/{name}"] == set(channel["messages"])
    found = set(references(document))
    assert len(found) > 20
    for reference in found:
        assert at(document, reference) is not None


def test_every_event_has_its_message_and_no_other_is_there(document: dict[str, Any]) -> None:
    notes = {"webhook.gap", "webhook.test"}
    assert set(document["components"]["messages"]) == {*EventType} | notes
    for name, message in document["components"]["messages"].items():
        assert message["summary"]
        schema = at(document, message["payload"]["$ref"])
        assert schema["properties"]["type"] == {"enum": [name]}
        assert schema["description"]


PROPOSED: Final = {
    "channel": "online",
    "stands_for": [["mug", "tea", 2, 1, 2, 1, "substitute"]],
    "proposed": ["mug"],
}
"""Extras of a reservation in which teas stand for a mug until somebody declines."""

UNKNOWN_SUPPLY: Final[tuple[Any, ...]] = (
    *("receive", 3, "", "", "depot", 5, True, 0, "tea", "7", 0),
    *("superseded", "supply_not_found", "", [], "po-l", ["po-1"]),
)
"""Of an event that a later count has already, and whose row did not expect its supply."""


def test_every_schema_is_one_and_is_used(document: dict[str, Any]) -> None:
    used = set(references(document))
    for name, schema in document["components"]["schemas"].items():
        Draft202012Validator.check_schema(schema)
        assert f"#/components/schemas/{name}" in used


def test_what_is_sent_is_what_the_document_says(document: dict[str, Any]) -> None:
    told = [
        operation(OperationKind.MOVE, ("sale", 9, "", "", "", 0)),
        operation(OperationKind.RESERVE, (1000, "order", [], 2000)),
        operation(OperationKind.CONFIRM, ("order", 2000)),
        operation(OperationKind.EXTEND, (3000, 2000, "id")),
        operation(OperationKind.AMEND, ("id", [["tea", 1]], "held", 2000)),
        operation(OperationKind.RESERVE, (1000, "", [], 2000, PROPOSED)),
        operation(OperationKind.DECIDE, ("accepted", ["mug"], [["cup", 2]], [], PROPOSED)),
        operation(OperationKind.DECIDE, ("declined", ["mug"], [["cup", 2]], [["mug", 1]], {})),
        operation(OperationKind.COMMIT, ("held", 2000, [["tea", 1]])),
        operation(OperationKind.RELEASE, ("held", 2000, "why")),
        operation(OperationKind.EXPIRE, ("held", 2000)),
        operation(OperationKind.FILL, ("tea", 2, 1)),
        operation(OperationKind.SLIP, ("tea", 2, "2026-12-07", "later")),
        operation(OperationKind.SLIP, ("tea", 2, "2026-12-07", "2026-12-07")),
        Operation(OperationKind.FEED, "e", "m", "l", "key:1", "", (), UNKNOWN_SUPPLY),
        operation(OperationKind.SHORTFALL, ("tea", 2, 1000, "sale", [["rsv_0_1", 2, "held"]])),
        operation(OperationKind.SHORTFALL, ("tea", 0, 1000, "receive", [])),
        operation(OperationKind.OFFLINE, ("degraded", 1000, [["tea", 3]], "live")),
        operation(OperationKind.OFFLINE, ("catching_up", 1000, [], "degraded")),
        operation(OperationKind.OFFLINE, ("live", 0, [["tea", 0]], "catching_up")),
    ]
    part = [1, "l", "rsv_0_1", "ord_0_1/1", [["tea", 2]], "held", "", [], [["tea", 1]], "", 0]
    told += [
        operation(
            OperationKind.ORDER,
            ("step", before, state, 3, True, 2000, 0, 0, 0, "why", [[part], []], [], "web:ord_0_1"),
        )
        for before, state in (
            ("placing", "held"),
            ("held", "confirmed"),
            ("confirmed", "confirmed"),
            ("confirmed", "fulfilled"),
            ("placing", "failed"),
            ("held", "cancelled"),
            ("held", "expired"),
        )
    ]
    seen: set[str] = set()
    for one in told:
        for event in events_of(one, sequence=4, at_ms=1_790_000_000_123, partition=2):
            sent = json.loads(msgspec.json.encode(event))
            validator(document, sent["type"]).validate(sent)
            seen.add(sent["type"])
            wrong = {**sent, "data": {**sent["data"], "merchant": 5}}
            assert not validator(document, sent["type"]).is_valid(wrong)
    assert seen == set(EVENTS)
    endpoint = WebhookEndpoint(
        id="whk_1",
        merchant="m",
        url="https://x.example/",
        description="",
        interest=Interest(),
        secrets=(),
        status_at_ms=0,
        created_at_ms=0,
        fingerprint="",
    )
    for notice in (
        notices.test_event(endpoint, now_ms=5),
        notices.gap_of_dropped(endpoint, dropped=1, from_ms=1, until_ms=2),
        notices.gap_of_disabled(endpoint, from_ms=1, until_ms=2),
        notices.gap_of_ledger(endpoint, partition=1, until_ms=2),
    ):
        validator(document, notice.type).validate(json.loads(notice.body))


async def test_the_document_is_served(document: dict[str, Any]) -> None:
    app = create_app(Service(StoreSettings("redis://127.0.0.1:1")))
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://x") as client:
        answer = await client.get("/asyncapi.json")
    assert answer.status_code == 200
    served = answer.json()
    assert served["info"].pop("version")
    assert served == {
        **document,
        "info": {key: value for key, value in document["info"].items() if key != "version"},
    }
