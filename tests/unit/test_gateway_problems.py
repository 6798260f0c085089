"""Every refusal as a problem, without a store: what the engine raises is put in its place."""

from collections.abc import Iterator
from enum import StrEnum
from typing import Annotated, Any, Literal, cast
from urllib.parse import unquote

import httpx
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.access import ApiKey, Role
from engine.inventory import Inventory
from engine.outcomes import (
    BackorderUnfilled,
    BuyerCapExceeded,
    HistoryUnavailable,
    HoldfastError,
    IdempotencyKeyReused,
    IndexUnavailable,
    InsufficientOnHand,
    InsufficientStock,
    InvalidCommand,
    ItemNotFound,
    KitNotFound,
    LimitExceeded,
    OrderEnded,
    OrderNotFound,
    OutcomeUnknown,
    Overloaded,
    PastNotKept,
    ProposalDecided,
    ProposalOpen,
    ReservationEnded,
    ReservationNotFound,
    ReservationNotHeld,
    RowNotFound,
    ShortLine,
    StoreFault,
    StoreReadOnly,
    StoreUnavailable,
    SubstitutesNotFound,
    SupplyNotFound,
    VersionConflict,
    WebhookNotFound,
)
from engine.store import StoreSettings
from gateway import problems
from gateway.app import create_app
from gateway.bodies import decode, undecodable
from gateway.problems import KINDS, MAX_DETAIL_CHARACTERS, InvalidRequest, kind_of, pointer
from gateway.routes import OPERATIONS
from gateway.service import Service
from tests.gateways import assert_problem

SHORT = (ShortLine("tea", 4, 3), ShortLine("cup", 1, 0, known=False))

RAISED: list[tuple[HoldfastError, int, str]] = [
    (HoldfastError(), 500, "internal"),
    (StoreFault("reserve", "WRONGTYPE of a secret kind"), 500, "internal"),
    (InvalidCommand("lines[1].sku", "is odd"), 400, "invalid_request"),
    (ReservationNotFound("rsv_0_0"), 404, "reservation_not_found"),
    (RowNotFound(merchant="m", location="l", sku="s"), 404, "row_not_found"),
    (InsufficientStock(SHORT), 409, "insufficient_stock"),
    (InsufficientOnHand(SHORT), 409, "insufficient_on_hand"),
    (BuyerCapExceeded(SHORT), 409, "buyer_cap_exceeded"),
    (BackorderUnfilled(SHORT), 409, "backorder_unfilled"),
    (OrderNotFound("ord_0_0"), 404, "order_not_found"),
    (
        OrderEnded("ord_0_0", state="expired", ended_at_ms=1_000, reason="late"),
        409,
        "order_ended",
    ),
    (ReservationEnded("rsv_0_0", state="expired", ended_at_ms=1_000), 409, "reservation_ended"),
    (ReservationNotHeld("rsv_0_0", state="confirmed"), 409, "reservation_not_held"),
    (ProposalOpen("rsv_0_0", skus=("tea",)), 409, "proposal_open"),
    (ProposalDecided("rsv_0_0"), 409, "proposal_decided"),
    (VersionConflict("tea", expected=1, actual=2), 409, "version_conflict"),
    (IdempotencyKeyReused("k"), 422, "idempotency_key_reused"),
    (LimitExceeded("ttl_seconds", most=5), 422, "limit_exceeded"),
    (Overloaded(retry_after_ms=1_200), 503, "overloaded"),
    (StoreUnavailable(), 503, "store_unavailable"),
    (StoreReadOnly(), 503, "read_only"),
    (OutcomeUnknown(), 503, "outcome_unknown"),
    (PastNotKept(at_ms=1, earliest_ms=2), 422, "past_not_kept"),
    (HistoryUnavailable("the archive does not answer"), 503, "history_unavailable"),
    (IndexUnavailable("the index cannot be asked"), 503, "index_unavailable"),
    (ItemNotFound("tea"), 404, "item_not_found"),
    (SubstitutesNotFound("tea"), 404, "substitutes_not_found"),
    (KitNotFound("tea"), 404, "kit_not_found"),
    (SupplyNotFound("tea", "po-1"), 404, "supply_not_found"),
    (WebhookNotFound("whk_1"), 404, "webhook_not_found"),
]


class Raising:
    """An engine whose every reserve and movement fails in one way."""

    def __init__(self, *errors: HoldfastError | Exception) -> None:
        self.errors = list(errors)

    async def reserve(self, *_args: Any, **_fields: Any) -> None:
        raise self.errors[0]

    async def move_many(self, *_args: Any, **_fields: Any) -> list[Any]:
        return self.errors


class Open(Service):
    """A service that needs no store: everyone is the admin."""

    def __init__(self, inventory: Raising) -> None:
        super().__init__(StoreSettings("redis://127.0.0.1:1"))
        self._stand_in = inventory

    @property
    def inventory(self) -> Inventory:
        return cast(Inventory, self._stand_in)

    async def authenticate(self, secret: str) -> ApiKey | None:
        return ApiKey(id="1", role=Role.ADMIN, merchant=None, label=secret, created_at_ms=0)


async def post(inventory: Raising, path: str, body: Any) -> httpx.Response:
    transport = httpx.ASGITransport(create_app(Open(inventory)), raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as client:
        return await client.post(
            path, json=body, headers={"Authorization": "Bearer x", "Idempotency-Key": "k"}
        )


async def reserve(error: Exception) -> httpx.Response:
    lines = [{"sku": sku, "quantity": 2} for sku in ("pot", "tea", "tea", "cup")]
    return await post(Raising(error), "/v1/merchants/m/locations/l/reservations", {"lines": lines})


@pytest.mark.parametrize(
    ("error", "status", "code"), RAISED, ids=lambda value: type(value).__name__
)
async def test_a_refusal_becomes_its_problem(error: HoldfastError, status: int, code: str) -> None:
    answer = await reserve(error)
    problem = assert_problem(answer, status, code)
    assert ("retry-after" in answer.headers) is (status == 503)
    assert "secret" not in answer.text
    assert problem["title"] == KINDS[type(error)].title


def test_every_refusal_of_the_engine_is_among_those_tried() -> None:
    of_the_engine = {
        cls for cls in every_refusal(HoldfastError) if cls.__module__ == "engine.outcomes"
    }
    assert of_the_engine | {HoldfastError} == {type(error) for error, _, _ in RAISED}


def every_refusal(cls: type[HoldfastError]) -> Iterator[type[HoldfastError]]:
    for subclass in cls.__subclasses__():
        yield subclass
        yield from every_refusal(subclass)


def test_every_refusal_has_an_entry_of_its_own() -> None:
    classes = {
        cls
        for cls in every_refusal(HoldfastError)
        if cls.__module__ in ("engine.outcomes", "gateway.problems")
    }
    assert classes | {HoldfastError} == set(KINDS)


def test_one_code_has_one_title() -> None:
    titles: dict[str, set[str]] = {}
    for cls, kind in KINDS.items():
        titles.setdefault(cls.code, set()).add(kind.title)
    assert {code: found for code, found in titles.items() if len(found) != 1} == {}


def test_a_class_without_an_entry_takes_that_of_its_base() -> None:
    assert kind_of(type("Later", (StoreUnavailable,), {})) == KINDS[StoreUnavailable]
    assert kind_of(type("Other", (HoldfastError,), {})).status == 500


async def test_short_lines_point_to_the_first_line_of_their_sku() -> None:
    errors = (await reserve(InsufficientStock(SHORT))).json()["errors"]
    assert [error["pointer"] for error in errors] == ["#/lines/1", "#/lines/3"]
    assert [error["known"] for error in errors] == [True, False]


async def test_a_wait_is_in_whole_seconds_and_never_none() -> None:
    for wait_ms, seconds in ((1_200, "2"), (1_000, "1"), (0, "1")):
        answer = await reserve(Overloaded(retry_after_ms=wait_ms))
        assert answer.headers["retry-after"] == seconds


async def test_a_bug_is_a_500_that_tells_nothing() -> None:
    answer = await reserve(ZeroDivisionError("with a secret"))
    assert_problem(answer, 500, "internal")
    assert "secret" not in answer.text


async def test_texts_are_bounded() -> None:
    answer = await reserve(InvalidCommand("lines", "x" * 5_000))
    problem = answer.json()
    assert len(problem["detail"]) == MAX_DETAIL_CHARACTERS


ITEM = {"location": "l", "type": "receive", "sku": "tea", "quantity": 1}


@pytest.mark.parametrize(
    ("results", "code"),
    [
        ((OutcomeUnknown(), InsufficientOnHand(SHORT)), "outcome_unknown"),
        ((InsufficientOnHand(SHORT), Overloaded(retry_after_ms=1)), "overloaded"),
        ((StoreUnavailable(), StoreUnavailable()), "store_unavailable"),
        ((StoreReadOnly(), OutcomeUnknown()), "outcome_unknown"),
    ],
)
async def test_a_batch_that_the_store_failed_is_refused_whole(
    results: tuple[HoldfastError, ...], code: str
) -> None:
    body = {"movements": [{**ITEM, "id": str(n)} for n in range(2)]}
    answer = await post(Raising(*results), "/v1/merchants/m/movements/batch", body)
    assert_problem(answer, 503, code)


async def test_a_damaged_row_fails_its_own_movement_alone() -> None:
    body = {"movements": [{**ITEM, "id": "0"}, {**ITEM, "id": "1"}]}
    results = Raising(StoreFault("move", "WRONGTYPE secret"), IdempotencyKeyReused("1"))
    answer = await post(results, "/v1/merchants/m/movements/batch", body)
    assert [one["error"]["code"] for one in answer.json()["data"]] == [
        "internal",
        "idempotency_key_reused",
    ]
    assert "secret" not in answer.text


@given(st.lists(st.text(), max_size=5))
def test_a_pointer_leads_back_to_its_path(path: list[str]) -> None:
    text = pointer(path)
    assert text.isascii()
    parts = [unquote(part).replace("~1", "/").replace("~0", "~") for part in text.split("/")[1:]]
    assert parts == path


class Sample(msgspec.Struct, forbid_unknown_fields=True):
    rows: list["Sample"] = []
    name: str = ""


@given(st.text(min_size=1).filter(lambda name: name not in ("rows", "name")))
def test_an_unknown_field_is_pointed_to_whatever_its_name(name: str) -> None:
    body = msgspec.json.encode({"rows": [{}, {"rows": [{name: 1}]}]})
    with pytest.raises(msgspec.ValidationError) as raised:
        msgspec.json.decode(body, type=Sample)
    (error,) = undecodable(raised.value).errors
    assert error.pointer == pointer(["rows", "1", "rows", "0", name])


class Colour(StrEnum):
    RED = "red"
    BLUE = "blue"


class Paint(msgspec.Struct, forbid_unknown_fields=True):
    colour: Colour = Colour.RED
    finish: Literal["matt", "gloss"] | None = None
    coats: Annotated[list["Paint"], msgspec.Meta(max_length=2)] = []
    by_room: dict[str, "Paint"] = {}


@pytest.mark.parametrize(
    ("sent", "where", "detail"),
    [
        ({"colour": "green"}, "#/colour", "Invalid enum value 'green', must be one of red, blue"),
        (
            {"coats": [{}, {"finish": "silk"}]},
            "#/coats/1/finish",
            "Invalid enum value 'silk', must be one of gloss, matt",
        ),
        (
            {"by_room": {"hall/a": {"colour": ""}}},
            "#/by_room",
            "Invalid enum value '', must be one of red, blue - at `*.colour`",
        ),
        (
            {"by_room": {"hall": {"coats": 1}}},
            "#/by_room",
            "Expected `array`, got `int` - at `*.coats`",
        ),
        (None, "#", "the body is empty: send a JSON object"),
    ],
)
def test_a_body_that_is_refused_is_told_where_and_what_may_stand_there(
    sent: Any, where: str, detail: str
) -> None:
    body = b"" if sent is None else msgspec.json.encode(sent)
    with pytest.raises(InvalidRequest) as raised:
        decode(body, msgspec.json.Decoder(Paint))
    (error,) = raised.value.errors
    assert (error.pointer, error.detail) == (where, detail)


def test_every_problem_of_an_operation_has_an_entry() -> None:
    named = {cls for operation in OPERATIONS for cls in operation.all_problems}
    assert named <= set(problems.KINDS)
