"""Spans from the request to the webhook, in one trace; and nothing of them while they are off."""

import subprocess
import sys
from collections.abc import Iterator

import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF
from opentelemetry.trace import SpanKind, StatusCode

from engine import tracing
from engine.spans import OpenTelemetrySpans
from engine.tracing import DISABLED_VARIABLE, EXPORTER_VARIABLE, TracingRefused
from tests.gateways import Api, Shelf
from tests.integration.test_webhooks import Hooks, working
from tests.receivers import Receiver
from tests.shop import open_shop
from tests.stores import VALKEY, MakeStore, RealStore, eventually, set_up

TRACE_ID = "4bf92f3577b34da6a3ce929d0e0e4736"
TRACED = {"traceparent": f"00-{TRACE_ID}-00f067aa0ba902b7-01"}
WAIT_SECONDS = 15.0


@pytest.fixture
def spans() -> Iterator[InMemorySpanExporter]:
    """What is traced, in this process."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    tracing.use(OpenTelemetrySpans(provider))
    yield exporter
    tracing.stop()


@pytest.fixture
async def own_store(make_store: MakeStore) -> RealStore:
    own = make_store(VALKEY)
    await own.start()
    await set_up(own.settings, partitions=1)
    return own


def parent_of(span: ReadableSpan) -> int:
    return 0 if span.parent is None else span.parent.span_id


def id_of(span: ReadableSpan) -> int:
    context = span.get_span_context()
    assert context is not None
    return context.span_id


async def test_a_request_its_command_and_its_webhook_are_one_trace(
    own_store: RealStore, spans: InMemorySpanExporter
) -> None:
    async with (
        Api(own_store.settings, "acme") as api,
        open_shop(own_store.settings, "acme") as shop,
        Receiver() as receiver,
        working(shop),
    ):
        await Hooks(shop).endpoint(receiver.url, types=("stock.changed",))
        client = await api.client()
        shelf = Shelf(client, "acme")
        made = await client.post(
            f"{shelf.path}/movements",
            json={"type": "receive", "sku": "tea", "quantity": 5},
            headers={"Idempotency-Key": "1", **TRACED},
        )
        assert made.status_code == 201
        (message,) = await receiver.until(1)

        async def is_delivered() -> bool:
            return any(span.name == "POST webhook" for span in spans.get_finished_spans())

        await eventually(is_delivered, within_seconds=WAIT_SECONDS)
        refused = await shelf.reserve(("tea", 9))

    found = {span.name: span for span in spans.get_finished_spans()}
    request, command, delivery = (
        found[name] for name in ("POST move", "store move", "POST webhook")
    )
    for span in (request, command, delivery):
        context = span.get_span_context()
        assert context is not None
        assert f"{context.trace_id:032x}" == TRACE_ID
    assert f"{parent_of(request):016x}" == TRACED["traceparent"].split("-")[2]
    assert parent_of(command) == id_of(request)
    assert parent_of(delivery) == id_of(request)
    assert message.event["traceparent"].split("-")[2] == f"{id_of(request):016x}"
    assert message.headers["traceparent"].split("-")[2] == f"{id_of(delivery):016x}"
    assert (request.kind, command.kind) == (SpanKind.SERVER, SpanKind.CLIENT)
    assert dict(request.attributes or {}) | {"holdfast.actor": ""} == {
        "http.request.method": "POST",
        "http.response.status_code": 201,
        "holdfast.operation": "move",
        "holdfast.merchant": "acme",
        "holdfast.actor": "",
    }
    assert (delivery.attributes or {})["http.response.status_code"] == 204

    # A refusal is an answer and no error.
    assert refused.status_code == 409
    reserve = found["POST reserve"]
    assert (reserve.attributes or {})["error.type"] == "insufficient_stock"
    assert reserve.status.status_code is StatusCode.UNSET


async def test_a_span_that_is_not_recorded_leaves_no_trace_in_the_ledger(
    own_store: RealStore,
) -> None:
    tracing.use(OpenTelemetrySpans(TracerProvider(sampler=ALWAYS_OFF)))
    try:
        async with Api(own_store.settings, "acme") as api:
            client = await api.client()
            shelf = Shelf(client, "acme")
            await shelf.move("receive", "tea", 5)
            page = await client.get(f"{shelf.merchant_path}/ledger")
            assert "traceparent" not in page.json()["data"][0]
    finally:
        tracing.stop()


def test_nothing_of_it_is_imported_while_it_is_off() -> None:
    code = (
        "import os, sys\n"
        "import gateway.app, gateway.process, holdfast.background\n"
        "from engine import tracing\n"
        "tracing.start({}, process='gateway-0')\n"
        "assert tracing.spans() is None\n"
        "assert 'engine.spans' not in sys.modules\n"
        # The store's own client imports what else there is of it, if it is there.
        "assert not [name for name in sys.modules if name.startswith('opentelemetry.exporter')]\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("value", ["jaeger", "OTLP,console"])
def test_an_exporter_that_is_none_is_refused_by_its_name(value: str) -> None:
    with pytest.raises(TracingRefused, match=f"{EXPORTER_VARIABLE}.*otlp, console, none"):
        tracing.start({EXPORTER_VARIABLE: value}, process="gateway-0")
    assert tracing.spans() is None


def test_it_may_be_disabled_as_a_whole() -> None:
    tracing.start({EXPORTER_VARIABLE: "otlp", DISABLED_VARIABLE: "true"}, process="gateway-0")
    assert tracing.spans() is None


def test_where_the_extra_is_missing_it_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "engine.spans")
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    with pytest.raises(TracingRefused, match=r"pip install 'holdfast\[otel\]'"):
        tracing.start({EXPORTER_VARIABLE: "otlp"}, process="gateway-0")
