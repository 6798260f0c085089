"""EPCIS documents: what is understood, and where it is not."""

import json
from typing import Any

import pytest

from holdfast.epcis import SUPPLIES, EpcisRefused, events_of

LINK = "https://id.gs1.org/01/09521568251204"


def document(*events: dict[str, Any], **fields: Any) -> bytes:
    """Return a document of events."""
    body = {
        "@context": ["https://ref.gs1.org/standards/epcis/2.0.0/epcis-context.jsonld"],
        "type": "EPCISDocument",
        "schemaVersion": "2.0",
        "epcisBody": {"eventList": list(events)},
        **fields,
    }
    return json.dumps(body).encode()


def object_event(**fields: Any) -> dict[str, Any]:
    """Return an ObjectEvent of a delivery."""
    return {
        "type": "ObjectEvent",
        "eventID": "urn:uuid:1",
        "eventTime": "2026-11-25T10:00:00.000+01:00",
        "eventTimeZoneOffset": "+01:00",
        "action": "OBSERVE",
        "bizStep": "receiving",
        "quantityList": [{"epcClass": LINK, "quantity": 12}],
        **fields,
    }


@pytest.mark.parametrize(
    ("step", "kind"),
    [
        ("receiving", "receipt"),
        ("urn:epcglobal:cbv:bizstep:shipping", "transfer_out"),
        ("https://ref.gs1.org/cbv/BizStep-cycle_counting", "count"),
        ("stock_taking", "count"),
    ],
)
def test_a_step_is_a_kind_of_event(step: str, kind: str) -> None:
    (event,) = events_of(document(object_event(bizStep=step)))
    assert event == {
        "event_id": "urn:uuid:1#09521568251204",
        "type": kind,
        "sku": "09521568251204",
        "quantity": 12,
        "occurred_at": "2026-11-25T10:00:00.000+01:00",
        "reference": "urn:uuid:1",
    }


def test_items_are_counted_by_their_class_whatever_they_are_called() -> None:
    items = [
        "urn:epc:id:sgtin:9521568.025120.serial1",
        "https://example.com/some/path/01/09521568251204/21/serial2",
        "https://id.gs1.org/01/00614141123452/21/7",
    ]
    more = [{"epcClass": "urn:epc:class:lgtin:9521568.025120.lot7", "quantity": 3.0}]
    events = events_of(document(object_event(epcList=items, quantityList=more)))
    assert {event["sku"]: event["quantity"] for event in events} == {
        "09521568251204": 5,
        "00614141123452": 1,
    }
    assert len({event["event_id"] for event in events}) == 2


PO = "urn:epcglobal:cbv:bt:5200001000008:4711%2F2"
ADVICE = "http://supplier.example/desadv/8779891013658"


@pytest.mark.parametrize(
    ("transactions", "supplies", "supply"),
    [
        ([("po", PO)], SUPPLIES, "4711/2"),
        ([("urn:epcglobal:cbv:btt:desadv", ADVICE)], SUPPLIES, ADVICE),
        ([("po", PO), ("https://ref.gs1.org/cbv/BTT-desadv", ADVICE)], SUPPLIES, ADVICE),
        ([("po", PO), ("desadv", ADVICE)], ("po",), "4711/2"),
        ([("po", PO), ("po", PO), ("inv", "urn:x:1"), ("inv", "urn:x:2")], SUPPLIES, "4711/2"),
        ([("inv", PO)], SUPPLIES, None),
        ([("po", PO)], ("none",), None),
    ],
)
def test_what_is_received_names_its_supply_by_a_transaction(
    transactions: list[tuple[str, str]], supplies: tuple[str, ...], supply: str | None
) -> None:
    named = [{"type": kind, "bizTransaction": name} for kind, name in transactions]
    (event,) = events_of(document(object_event(bizTransactionList=named)), supplies)
    assert event.get("supply") == supply
    for fields in ({"bizStep": "shipping"}, {"errorDeclaration": {"reason": "did_not_occur"}}):
        (other,) = events_of(document(object_event(bizTransactionList=named, **fields)), supplies)
        assert "supply" not in other


def test_an_error_takes_back_what_the_event_did() -> None:
    declared = {"declarationTime": "2026-11-25T12:00:00Z", "reason": "incorrect_data"}
    received, shipped = (
        events_of(document(object_event(bizStep=step, errorDeclaration=declared)))[0]
        for step in ("receiving", "shipping")
    )
    assert (received["type"], received["quantity"]) == ("adjustment", -12)
    assert (shipped["type"], shipped["quantity"]) == ("adjustment", 12)
    assert received["event_id"] == "urn:uuid:1#09521568251204#error"
    assert received["reason"] == "EPCIS error: incorrect_data"


def quantities(quantity: Any) -> dict[str, Any]:
    """Return a list of one class in such a quantity."""
    return {"quantityList": [{"epcClass": LINK, "quantity": quantity}]}


def transaction(**fields: Any) -> dict[str, Any]:
    """Return a list of one business transaction."""
    return {"bizTransactionList": [{"type": "po", "bizTransaction": PO, **fields}]}


@pytest.mark.parametrize(
    ("fields", "pointer"),
    [
        ({"type": "AggregationEvent"}, "/type"),
        ({"bizStep": "destroying"}, "/bizStep"),
        ({"action": "LOOK"}, "/action"),
        ({"eventTime": "2026-11-25T10:00:00"}, "/eventTime"),
        ({"eventID": ""}, "/eventID"),
        ({"ilmd": {}}, "/ilmd"),
        ({"acme/a~b": 1}, "/acme~1a~0b"),
        ({"epcList": ["urn:epc:id:sscc:1.2"], "quantityList": []}, "/epcList/0"),
        (quantities(1.5), "/quantityList/0/quantity"),
        (
            {"quantityList": [{"epcClass": LINK, "quantity": 5, "uom": "KGM"}]},
            "/quantityList/0/uom",
        ),
        ({"quantityList": []}, ""),
        ({"bizStep": "stock_taking", "errorDeclaration": {}}, "/errorDeclaration"),
        ({"errorDeclaration": {"why": 1}}, "/errorDeclaration/why"),
        ({"bizTransactionList": ["po"]}, "/bizTransactionList/0"),
        ({"bizTransactionList": [{"type": "po"}]}, "/bizTransactionList/0/bizTransaction"),
        (transaction(type=["po"]), "/bizTransactionList/0/type"),
        (transaction(bizTransaction="x" * 1_001), "/bizTransactionList/0/bizTransaction"),
        (
            transaction(bizTransaction="urn:epcglobal:cbv:bt:5200001000008:a%0Ab"),
            "/bizTransactionList/0/bizTransaction",
        ),
        (quantities(True), "/quantityList/0/quantity"),
        (quantities(10**9 + 1), "/quantityList/0/quantity"),
        (quantities(-1), "/quantityList/0/quantity"),
        ({"epcList": ["https://id.gs1.org/01/٠٩٥٢١٥٦٨٢٥١٢٠٤"]}, "/epcList/0"),
        ({"epcList": ["https://id.gs1.org" + "/01/09521568251204" * 2_000 + "\n"]}, "/epcList/0"),
        (
            {"bizTransactionList": [{"type": "po", "bizTransaction": f"urn:x:{n}"} for n in "12"]},
            "/bizTransactionList",
        ),
    ],
)
def test_what_is_not_understood_is_refused_with_its_pointer(
    fields: dict[str, Any], pointer: str
) -> None:
    with pytest.raises(EpcisRefused) as refused:
        events_of(document(object_event(), object_event(**fields)))
    assert refused.value.pointer == f"/epcisBody/eventList/1{pointer}"


@pytest.mark.parametrize(
    ("text", "pointer"),
    [
        (b"{", ""),
        (b"[]", ""),
        (document(type="EPCISQueryDocument"), "/type"),
        (document(schemaVersion="1.2"), "/schemaVersion"),
        (document(epcisBody={"queryResults": {}}), "/epcisBody/queryResults"),
        (document(epcisBody={"eventList": {}}), "/epcisBody/eventList"),
    ],
)
def test_a_document_of_another_kind_is_refused(text: bytes, pointer: str) -> None:
    with pytest.raises(EpcisRefused) as refused:
        events_of(text)
    assert refused.value.pointer == pointer
