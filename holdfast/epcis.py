"""GS1 EPCIS 2.0 documents (JSON) as events of a feed: what is understood, and nothing else.

Understood are ObjectEvents of these business steps of the Core Business Vocabulary: `receiving`
(a receipt), `shipping` (units leave for elsewhere), `cycle_counting` and `stock_taking` (a count).
Units are named by class and quantity, or one by one. The SKU is the GTIN of 14 digits. An event
that declares an error takes back what the event of its id did. The supply that was received is
named by a business transaction: a despatch advice, or else a purchase order. Anything else is
refused with the JSON pointer to it: half of a document is worse than none. See EPCIS 2.0 (GS1,
2022), sections 7.4 and 9.5, the transaction types and identifiers of CBV 2.0, and RFC 6901.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any, Final
from urllib.parse import unquote

import msgspec

from engine.limits import MAX_QUANTITY

MAX_EVENTS: Final = 100_000
"""Of one document, which is held in memory."""

MAX_NAME_CHARACTERS: Final = 1_000
"""Of a class, an item or a transaction."""

_STEPS: Final = {
    "receiving": "receipt",
    "shipping": "transfer_out",
    "cycle_counting": "count",
    "stock_taking": "count",
}
_PREFIXES: Final = ("urn:epcglobal:cbv:bizstep:", "https://ref.gs1.org/cbv/BizStep-")
_TRANSACTION_PREFIXES: Final = ("urn:epcglobal:cbv:btt:", "https://ref.gs1.org/cbv/BTT-")

SUPPLIES: Final = ("desadv", "po")
"""Types of business transactions that name a supply: that of one shipment comes first."""

_DOCUMENT: Final = frozenset(
    {"@context", "id", "type", "schemaVersion", "creationDate", "epcisBody"}
)
_EVENT: Final = frozenset(
    {
        "type",
        "eventID",
        "eventTime",
        "eventTimeZoneOffset",
        "recordTime",
        "action",
        "bizStep",
        "disposition",
        "readPoint",
        "bizLocation",
        "bizTransactionList",
        "sourceList",
        "destinationList",
        "epcList",
        "quantityList",
        "errorDeclaration",
    }
)
_QUANTITY: Final = frozenset({"epcClass", "quantity"})
_TRANSACTION: Final = frozenset({"type", "bizTransaction"})
_DECLARATION: Final = frozenset({"declarationTime", "reason", "correctiveEventIDs"})

_DIGITAL_LINK = re.compile(r"https?://[^/]+(?:/[^/]+)*?/01/([0-9]{14})(?:/.*)?")
_PARTYS_NUMBER = re.compile(r"urn:epcglobal:cbv:bt:[0-9]{13}:(.+)")
_URN = re.compile(
    r"urn:epc:(?:id|idpat|class):(?:sgtin|lgtin):([0-9]{6,12})\.([0-9])([0-9]{0,6})\..+"
)


class EpcisRefused(Exception):
    """What a document says is not understood; `pointer` is where (RFC 6901)."""

    def __init__(self, pointer: str, reason: str) -> None:
        """Keep both."""
        self.pointer = pointer
        self.reason = reason
        super().__init__(f"{pointer or '/'}: {reason}")


def events_of(document: bytes, supplies: Sequence[str] = SUPPLIES) -> list[dict[str, Any]]:
    """Return the events of a document as the HTTP API takes them. Raises EpcisRefused.

    `supplies` are the types of business transactions by which what is received names its supply,
    the first that an event has.
    """
    try:
        parsed = msgspec.json.decode(document)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise EpcisRefused("", f"it is not JSON: {error}") from error
    _only(parsed, _DOCUMENT, "")
    if parsed.get("type") != "EPCISDocument":
        raise EpcisRefused("/type", "only an EPCISDocument is understood")
    if not str(parsed.get("schemaVersion", "")).startswith("2."):
        raise EpcisRefused("/schemaVersion", "only version 2 is understood")
    body = parsed.get("epcisBody")
    _only(body, frozenset({"eventList"}), "/epcisBody")
    found = body.get("eventList")
    if not isinstance(found, list) or len(found) > MAX_EVENTS:
        raise EpcisRefused("/epcisBody/eventList", f"must be a list of at most {MAX_EVENTS}")
    events: list[dict[str, Any]] = []
    for number, one in enumerate(found):
        events += _events_of_one(one, f"/epcisBody/eventList/{number}", supplies)
    return events


def _events_of_one(event: Any, place: str, supplies: Sequence[str]) -> Iterator[dict[str, Any]]:
    _only(event, _EVENT, place)
    if event.get("type") != "ObjectEvent":
        raise EpcisRefused(f"{place}/type", "only an ObjectEvent is understood")
    kind = _kind(event.get("bizStep"), f"{place}/bizStep")
    if event.get("action") not in ("ADD", "OBSERVE", "DELETE"):
        raise EpcisRefused(f"{place}/action", "must be ADD, OBSERVE or DELETE")
    the_id = _text(event, "eventID", place)
    occurred_at = _moment(event, place)
    units = _units(event, place)
    supply = _supply(event, supplies, place) if kind == "receipt" else ""
    declared = event.get("errorDeclaration")
    if declared is not None:
        _only(declared, _DECLARATION, f"{place}/errorDeclaration")
        if kind == "count":
            why = "a count cannot be taken back: send one of a later moment"
            raise EpcisRefused(f"{place}/errorDeclaration", why)
    for sku, quantity in units.items():
        made: dict[str, Any] = {
            "event_id": f"{the_id}#{sku}",
            "type": kind,
            "sku": sku,
            "quantity": quantity,
            "occurred_at": occurred_at,
            "reference": the_id,
        }
        if declared is not None:
            made["event_id"] += "#error"
            made["type"] = "adjustment"
            made["quantity"] = quantity if kind == "transfer_out" else -quantity
            made["reason"] = f"EPCIS error: {declared.get('reason', 'declared')}"[:200]
        elif supply:
            made["supply"] = supply
        yield made


def _kind(step: Any, place: str) -> str:
    name = str(step)
    for prefix in _PREFIXES:
        name = name.removeprefix(prefix)
    if name not in _STEPS:
        known = ", ".join(_STEPS)
        raise EpcisRefused(place, f"the business step is not understood; these are: {known}")
    return _STEPS[name]


def _supply(event: Mapping[str, Any], types: Sequence[str], place: str) -> str:
    """Return the supply that an event names, empty for none.

    Of a transaction that is named by its party's GLN and number it is the number, else the URI.
    """
    found: dict[str, list[str]] = {}
    for number, one in enumerate(_list(event, "bizTransactionList", place)):
        where = f"{place}/bizTransactionList/{number}"
        _only(one, _TRANSACTION, where)
        name = one.get("type", "")
        if not isinstance(name, str):
            raise EpcisRefused(f"{where}/type", "must be the type of a business transaction")
        for prefix in _TRANSACTION_PREFIXES:
            name = name.removeprefix(prefix)
        found.setdefault(name, []).append(_transaction(one, where))
    for name in types:
        named = list(dict.fromkeys(found.get(name, ())))
        if len(named) > 1:
            why = f"names {len(named)} of type {name}, and what comes is of one supply"
            raise EpcisRefused(f"{place}/bizTransactionList", why)
        if named:
            return named[0]
    return ""


def _transaction(one: Mapping[str, Any], place: str) -> str:
    name = _text(one, "bizTransaction", place)
    own = None if len(name) > MAX_NAME_CHARACTERS else _PARTYS_NUMBER.fullmatch(name)
    named = name if own is None else unquote(own[1])
    if len(name) > MAX_NAME_CHARACTERS or not named.isprintable():
        why = f"must have at most {MAX_NAME_CHARACTERS} characters, all of them printable"
        raise EpcisRefused(f"{place}/bizTransaction", why)
    return named


def _moment(event: Mapping[str, Any], place: str) -> str:
    text = _text(event, "eventTime", place)
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        moment = None
    if moment is None or moment.tzinfo is None:
        raise EpcisRefused(f"{place}/eventTime", "must be a time with its offset")
    return text


def _units(event: Mapping[str, Any], place: str) -> dict[str, int]:
    """Add up the units of each SKU."""
    units: dict[str, int] = {}
    for number, epc in enumerate(_list(event, "epcList", place)):
        sku = _gtin(epc, f"{place}/epcList/{number}")
        units[sku] = units.get(sku, 0) + 1
    for number, one in enumerate(_list(event, "quantityList", place)):
        where = f"{place}/quantityList/{number}"
        # With a unit of measure it is a weight or a length, and no number of things.
        _only(one, _QUANTITY, where)
        sku = _gtin(one.get("epcClass"), f"{where}/epcClass")
        quantity = one.get("quantity")
        if (
            isinstance(quantity, bool)
            or not isinstance(quantity, int | float)
            or not 0 <= quantity <= MAX_QUANTITY
            or quantity != int(quantity)
        ):
            why = f"must be a whole number of units, at most {MAX_QUANTITY}"
            raise EpcisRefused(f"{where}/quantity", why)
        units[sku] = units.get(sku, 0) + int(quantity)
    if not units:
        raise EpcisRefused(place, "names no units: neither epcList nor quantityList")
    return units


def _gtin(name: Any, place: str) -> str:
    """Return the GTIN of 14 digits that a class or an item is of."""
    # A pattern that does not fit is tried from every place, so no text may be long.
    text = name if isinstance(name, str) and len(name) <= MAX_NAME_CHARACTERS else ""
    link = _DIGITAL_LINK.fullmatch(text)
    if link is not None:
        return link[1]
    urn = _URN.fullmatch(text)
    if urn is None or len(urn[1]) + len(urn[3]) != 12:
        raise EpcisRefused(place, "must be a GTIN as a GS1 Digital Link, or an SGTIN or LGTIN URN")
    digits = urn[2] + urn[1] + urn[3]
    total = sum(int(digit) * (3 if place % 2 == 0 else 1) for place, digit in enumerate(digits))
    return f"{digits}{-total % 10}"


def _only(value: Any, known: frozenset[str], place: str) -> None:
    if not isinstance(value, dict):
        raise EpcisRefused(place, "must be an object")
    for name in value:
        if name not in known:
            escaped = name.replace("~", "~0").replace("/", "~1")
            raise EpcisRefused(f"{place}/{escaped}", "is not understood")


def _text(event: Mapping[str, Any], name: str, place: str) -> str:
    text = event.get(name)
    if not isinstance(text, str) or not text:
        raise EpcisRefused(f"{place}/{name}", "is missing")
    return text


def _list(event: Mapping[str, Any], name: str, place: str) -> Sequence[Any]:
    found = event.get(name, [])
    if not isinstance(found, list):
        raise EpcisRefused(f"{place}/{name}", "must be a list")
    return found
