"""The OpenAPI document against what is served, in both directions, and against a fuzzer."""

import asyncio
import json
import os
import random
from collections.abc import Callable, Iterator
from typing import Any, Final, cast
from uuid import uuid4

import httpx
import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis.strategies import SearchStrategy
from openapi_spec_validator import OpenAPIV31SpecValidator
from schemathesis.core.result import Ok
from schemathesis.core.transport import Response
from schemathesis.generation import GenerationMode
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)
from starlette.applications import Starlette
from starlette.routing import Mount, Route, WebSocketRoute

from engine.access import Role, create_key
from engine.store import StoreSettings, close_quietly, connect
from gateway import openapi, problems
from gateway.app import create_app
from gateway.endpoints import Edge
from gateway.router import Router
from gateway.routes import OPERATIONS
from gateway.service import Service
from tests.gateways import GatewayProcess
from tests.stores import MakeStore, set_up

UNDOCUMENTED: Final = {
    "/console",
    "/console/assets",
    "/openapi.json",
    "/asyncapi.json",
    "/docs",
    "/docs/assets",
}
"""The documents themselves and their page."""

EXAMPLES: Final = 200 if os.environ.get("HOLDFAST_TEST_PROFILE") == "ci" else 12
"""Fuzzed requests an operation and kind of data, well-formed and malformed."""

ANSWER_SECONDS: Final = 20.0

NO_HTTP: Final = "Invalid HTTP request received."
"""What the server itself answers to a header that HTTP cannot carry; it reaches no application."""

CHECKS: Final = [
    schemathesis.checks.not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    return cast(dict[str, Any], json.loads(json.dumps(openapi.document("0"))))


def served() -> Iterator[tuple[str, set[str]]]:
    """Yield each served path with its methods, as the routers really have them."""
    edge = create_app(Service(StoreSettings("redis://127.0.0.1:1")))
    assert isinstance(edge, Edge)
    router = edge.app
    assert isinstance(router, Router)
    for path, endpoint in router.endpoints.items():
        yield path, endpoint.methods
    assert isinstance(router.otherwise, Starlette)
    for route in router.otherwise.routes:
        if isinstance(route, WebSocketRoute):
            # OpenAPI has no words for a socket.
            continue
        assert isinstance(route, Route | Mount)
        yield route.path, set()


def test_the_document_is_valid_openapi_3_1(document: dict[str, Any]) -> None:
    assert document["openapi"] == "3.1.0"
    assert [str(error) for error in OpenAPIV31SpecValidator(document).iter_errors()] == []


def test_what_is_served_is_documented_and_the_other_way_round(document: dict[str, Any]) -> None:
    documented = {
        (path, method.upper()) for path, methods in document["paths"].items() for method in methods
    }
    found = {(path, method) for path, methods in served() for method in methods}
    assert {pair for pair in found if pair[1] != "HEAD"} == documented
    # A HEAD is what a GET says of itself (RFC 9110), and so needs no words of its own.
    assert {path for path, method in found if method == "HEAD"} == {
        path for path, method in documented if method == "GET"
    }
    assert {path for path, methods in served() if not methods} == UNDOCUMENTED


def test_operations_have_unique_names(document: dict[str, Any]) -> None:
    names = [one["operationId"] for path in document["paths"].values() for one in path.values()]
    assert len(set(names)) == len(names) == len(OPERATIONS)


def test_every_code_that_an_operation_can_answer_with_is_named(document: dict[str, Any]) -> None:
    for operation in OPERATIONS:
        responses = document["paths"][operation.path][operation.method.lower()]["responses"]
        for cls in operation.all_problems:
            described = responses[str(problems.kind_of(cls).status)]["description"]
            assert f"`{cls.code}`" in described, (operation.name, cls)


def test_every_schema_refuses_unknown_fields_of_requests(document: dict[str, Any]) -> None:
    schemas = document["components"]["schemas"]
    requests = [name for name in schemas if name.endswith("Request")] + ["BatchMovement"]
    assert len(requests) > 5
    assert [
        name for name in requests if schemas[name].get("additionalProperties") is not False
    ] == []


def test_every_schema_is_used_and_described(document: dict[str, Any]) -> None:
    text = json.dumps(document)
    for name, schema in document["components"]["schemas"].items():
        assert f'"#/components/schemas/{name}"' in text, name
        assert schema.get("description"), name


async def test_the_document_that_is_served_is_the_one_that_is_checked(
    document: dict[str, Any],
) -> None:
    app = create_app(Service(StoreSettings("redis://127.0.0.1:1")))
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(app), base_url="http://gateway"
    ) as client:
        answer = await client.get("/openapi.json")
        page = await client.get("/docs")
    assert answer.headers["content-type"] == "application/json"
    assert {**answer.json(), "info": None} == {**document, "info": None}
    assert "default-src 'none'" in page.headers["content-security-policy"]


@pytest.mark.slow
async def test_no_request_finds_a_500_or_an_answer_that_is_not_documented(
    make_store: MakeStore, document: dict[str, Any], merchant: str
) -> None:
    store = make_store()
    await store.start()
    await set_up(store.settings)
    client = connect(store.settings)
    _, secret = await create_key(client, role=Role.ADMIN, merchant=None, label="")
    await close_quietly(client)
    async with GatewayProcess(store.settings) as gateway:
        await gateway.wait_until_ready()
        await asyncio.to_thread(fuzz, document, gateway.url, secret, merchant)


def fuzz(document: dict[str, Any], url: str, secret: str, merchant: str) -> None:
    """Send fuzzed requests of every operation; a failure names its seed."""
    schema = schemathesis.openapi.from_dict(document)
    headers = {"Authorization": f"Bearer {secret}"}
    number = random.SystemRandom().randrange(2**32)
    tried: set[str] = set()
    statuses: set[int] = set()
    with httpx.Client(base_url=url, headers=headers) as client:
        held(client, merchant)

        def send(case: Any) -> None:
            lead(case, client, merchant)
            if case.operation.definition.raw["operationId"] == "listen":
                response = begin(case, url, headers)
                if response is None:
                    return
            else:
                response = case.call(base_url=url, headers=headers)
            if response.text == NO_HTTP:
                return
            statuses.add(response.status_code)
            case.validate_response(response, checks=CHECKS)

        for found in schema.get_all_operations():
            assert isinstance(found, Ok)
            operation = found.ok()
            tried.add(operation.definition.raw["operationId"])
            modes = [GenerationMode.POSITIVE, GenerationMode.NEGATIVE]
            # Where nothing is read, nothing can be malformed.
            for mode in modes if operation.path.startswith("/v1") else modes[:1]:
                try:
                    many(number, operation.as_strategy(generation_mode=mode), send)
                except BaseException as error:
                    error.add_note(f"seed {number}, {operation.label}, {mode}")
                    raise
    assert tried == {operation.name for operation in OPERATIONS}
    assert statuses >= {200, 400, 404}


def begin(case: Any, url: str, headers: dict[str, str]) -> Response | None:
    """Send what may open a stream; None where it did, since a stream has no end to wait for."""
    with requests.Session() as session:
        sent = case.as_transport_kwargs(base_url=url, headers=headers)
        answer = session.request(**sent, stream=True, timeout=ANSWER_SECONDS)
        if answer.status_code == 200:
            assert answer.headers["content-type"] == "text/event-stream"
            answer.close()
            return None
        return Response.from_requests(answer, verify=True)


def lead(case: Any, client: httpx.Client, merchant: str) -> None:
    """Lead every second request to what exists: an invented id only ever finds a 404."""
    # Not from `random`, which Hypothesis seeds anew for every case.
    if uuid4().int % 2:
        return
    path = case.path_parameters
    names = {"merchant": merchant, "location": "fuzz", "sku": "tea"}
    path.update({name: names[name] for name in names if name in path})
    if "reservation" in path:
        path["reservation"] = held(client, merchant)
    if "order" in path:
        path["order"] = placed(client, merchant)
    if "lines" in (case.body if isinstance(case.body, dict) else {}):
        lines = case.body["lines"] if isinstance(case.body["lines"], list) else []
        for line in lines:
            if isinstance(line, dict) and "sku" in line:
                line["sku"] = "tea"


def many(number: int, cases: SearchStrategy[Any], send: Callable[[Any], None]) -> None:
    """Call `send` with cases drawn from the seed `number`."""

    @seed(number)
    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        database=None,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=cases)
    def check(case: Any) -> None:
        send(case)

    check()


def placed(client: httpx.Client, merchant: str) -> str:
    """Make an order and return its id."""
    held(client, merchant)
    made = client.post(
        f"/v1/merchants/{merchant}/orders",
        json={"lines": [{"sku": "tea", "quantity": 1, "location": "fuzz"}]},
        headers={"Idempotency-Key": uuid4().hex},
    )
    return str(made.raise_for_status().json()["id"])


def held(client: httpx.Client, merchant: str) -> str:
    """Make a reservation and return its id."""
    shelf = f"/v1/merchants/{merchant}/locations/fuzz"
    key = {"Idempotency-Key": uuid4().hex}
    movement = {"type": "count", "sku": "tea", "quantity": 10**11}
    client.post(f"{shelf}/movements", json=movement, headers=key).raise_for_status()
    made = client.post(
        f"{shelf}/reservations",
        json={"lines": [{"sku": "tea", "quantity": 1}], "ttl_seconds": 600},
        headers=key,
    )
    return str(made.raise_for_status().json()["id"])
