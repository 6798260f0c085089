"""Whatever a client sends: hostile ids, numbers, bodies, headers and paths."""

import json
from typing import Any
from urllib.parse import quote

import httpx
import pytest

from gateway.bodies import MAX_BODY_BYTES
from gateway.endpoints import MAX_QUERY_FIELDS
from tests.gateways import Api, Shelf, assert_problem, lines_of

HOSTILE = {
    "braces": "{acme:x}{y}",
    "colon": "a:b",
    "crlf": "a\r\nX-Evil: 1",
    "nul": "a\0b",
    "right to left": "שָׁלוֹם\u202ehsac",
    "slash": "a/b//c",
    "backslash": "a\\b",
    "dots": "..",
    "percent": "100%25",
    "question": "a?b#c",
    "quotes": "\"'`",
    "space": " a ",
    "emoji": "🫖" * 50,
    "200 bytes": "é" * 100,
    "script": "<script>alert(1)</script>",
    "not normalised": "e\u0301",
    "glob": "*[a]?",
}


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE.keys())
async def test_an_id_may_be_any_text(api: Api, text: str) -> None:
    merchant = f"{api.merchant}{text}"[:200]
    while len(merchant.encode()) > 200:
        merchant = merchant[:-1]
    encoded = [quote(part, safe="").replace(".", "%2E") for part in (merchant, text)]
    shelf = Shelf(await api.client(merchant=merchant), *encoded)
    moved = await shelf.move("receive", text, 5)
    assert moved.status_code == 201, moved.text
    assert [moved.json()[name] for name in ("merchant", "location", "sku")] == [
        merchant,
        text,
        text,
    ]
    row = await shelf.client.get(f"{shelf.path}/stock/{encoded[1]}")
    assert (row.status_code, row.json()["on_hand"]) == (200, 5)
    assert [
        one["sku"] for one in (await shelf.client.get(f"{shelf.path}/stock")).json()["data"]
    ] == [text]
    locations = (await shelf.client.get(f"{shelf.merchant_path}/locations")).json()["data"]
    assert locations == [{"location": text}]
    held = await shelf.reserve((text, 2), order_ref=text)
    assert held.status_code == 201, held.text
    listed = (await shelf.client.get(f"{shelf.path}/reservations")).json()["data"]
    assert [one["id"] for one in listed] == [held.json()["id"]]
    assert (await shelf.client.get(held.headers["location"])).json() == held.json()
    asked = await shelf.client.post(
        f"{shelf.merchant_path}/availability",
        json={"rows": [{"location": text, "sku": text}]},
    )
    assert asked.json()["data"][0]["available"] == 3
    assert (await shelf.end("commit", held.json()["id"])).status_code == 200


async def test_ids_that_look_alike_are_different_rows(shelf: Shelf) -> None:
    for number, sku in enumerate(("a/b", "a%2Fb", "A/B", "a/b ", "é", "e\u0301"), start=1):
        assert (await shelf.move("receive", sku, number)).json()["stock"]["on_hand"] == number


@pytest.mark.parametrize(
    ("segment", "status"),
    [
        (quote("é" * 100), 200),
        (quote("é" * 100) + "x", 400),
        ("%FF", 400),
        ("%C3", 400),
        ("%ED%A0%80", 400),
        ("%zz", 400),
        ("%", 400),
        ("%2", 400),
    ],
)
async def test_a_path_segment_is_utf8_of_at_most_200_bytes(
    shelf: Shelf, segment: str, status: int
) -> None:
    if status == 200:
        await shelf.move("receive", "é" * 100, 1)
    request = shelf.client.build_request("GET", f"{shelf.path}/stock/x")
    # httpx would mend the escapes, so the path goes out as it is.
    target = request.url.raw_path.removesuffix(b"x") + segment.encode()
    request.url = RawUrl(request.url, target)
    answer = await shelf.client.send(request)
    assert answer.status_code == status
    if status == 400:
        problem = assert_problem(answer, 400, "invalid_request")
        assert problem["errors"][0]["parameter"] == "sku"


class RawUrl(httpx.URL):
    """A URL whose path is sent exactly as it is given."""

    def __init__(self, url: httpx.URL, target: bytes) -> None:
        super().__init__(url)
        self._target = target

    @property
    def raw_path(self) -> bytes:
        return self._target


@pytest.mark.parametrize(
    "number",
    [
        "NaN", "-1", "0", "-0", "9223372036854775808", "18446744073709551616", "1e3", "1E0",
        "0x10", '"5"', "true", "1.5", "1.0", "null", "[]", "{}", "Infinity", "-Infinity", "01",
        "+1", "1_000", "1000000001", "9" * 400, "\u0661",
    ],
)  # fmt: skip
async def test_a_quantity_is_a_json_integer_in_its_limits(shelf: Shelf, number: str) -> None:
    await shelf.move("count", "tea", 10**12)
    content = f'{{"lines": [{{"sku": "tea", "quantity": {number}}}]}}'.encode()
    answer = await shelf.client.post(
        f"{shelf.path}/reservations", content=content, headers=shelf.key()
    )
    assert_problem(answer, 400, "invalid_request")
    answer = await shelf.client.post(
        f"{shelf.path}/movements",
        content=f'{{"type": "receive", "sku": "tea", "quantity": {number}}}'.encode(),
        headers=shelf.key(),
    )
    assert_problem(answer, 400, "invalid_request")
    row = (await shelf.client.get(f"{shelf.path}/stock/tea")).json()
    assert (row["on_hand"], row["reserved"], row["version"]) == (10**12, 0, 1)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b" ",
        b"{",
        b'{"lines": [}',
        b"{} {}",
        b"\xef\xbb\xbf{}",
        b'{"lines": [{"sku": "\xff", "quantity": 1}]}',
        b'{"lines": [{"sku": "\\ud800", "quantity": 1}]}',
        b'{"lines": [{"sku": "\xed\xa0\x80", "quantity": 1}]}',
        b'{"lines": [{"sku": "a\nb", "quantity": 1}]}',
        b"[" * 500_000,
        b'{"lines": ' + b"[" * 500_000,
        b'{"x": ' + b'{"x": ' * 100_000 + b"1" + b"}" * 100_001,
        b"\x00" * 100,
        "{}".encode("utf-16"),
    ],
    ids=range(15),
)
async def test_a_body_that_is_no_json_of_ours_is_a_400(shelf: Shelf, content: bytes) -> None:
    answer = await shelf.client.post(
        f"{shelf.path}/reservations", content=content, headers=shelf.key()
    )
    assert_problem(answer, 400, "invalid_request")


async def test_a_deep_batch_is_a_400(shelf: Shelf) -> None:
    path = f"{shelf.merchant_path}/movements/batch"
    for content in (
        b'{"movements": [' + b"[" * 200_000 + b"]" * 200_000 + b"]}",
        b'{"movements": [' + b'{"a": ' * 100_000 + b"1" + b"}" * 100_000 + b"]}",
    ):
        assert_problem(await shelf.client.post(path, content=content), 400, "invalid_request")


async def test_invalid_utf8_in_one_movement_leaves_the_others_alone(shelf: Shelf) -> None:
    good = b'{"id": "1", "location": "berlin", "type": "receive", "sku": "tea", "quantity": 1}'
    bad = good.replace(b"tea", b"\xff").replace(b'"1"', b'"2"')
    answer = await shelf.client.post(
        f"{shelf.merchant_path}/movements/batch",
        content=b'{"movements": [' + bad + b"," + good + b"]}",
    )
    refused, applied = answer.json()["data"]
    assert (refused["id"], refused["status"], applied["status"]) == ("2", "refused", "applied")
    assert refused["error"]["errors"][0]["pointer"] == "#/movements/0"


async def test_a_body_of_ten_megabytes_is_too_large(shelf: Shelf) -> None:
    content = b'{"lines": "' + b"x" * 10_000_000 + b'"}'
    path = f"{shelf.path}/reservations"
    announced = await shelf.client.post(path, content=content, headers=shelf.key())
    assert_problem(announced, 413, "payload_too_large")

    async def chunks() -> Any:
        for start in range(0, len(content), 65_536):
            yield content[start : start + 65_536]

    streamed = await shelf.client.post(path, content=chunks(), headers=shelf.key())
    assert_problem(streamed, 413, "payload_too_large")


async def test_a_body_may_have_its_whole_limit(shelf: Shelf) -> None:
    await shelf.move("receive", "tea", 1)
    body = json.dumps({"lines": lines_of([("tea", 1)])}).encode()
    for size, status in ((MAX_BODY_BYTES, 201), (MAX_BODY_BYTES + 1, 413)):
        answer = await shelf.client.post(
            f"{shelf.path}/reservations", content=body.ljust(size), headers=shelf.key()
        )
        assert answer.status_code == status


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Content-Type": "application/json"}, 201),
        ({"Content-Type": "application/json; charset=utf-8"}, 201),
        ({"Content-Type": 'Application/JSON;charset="UTF-8"'}, 201),
        ({"Content-Type": "application/vnd.shop+json"}, 201),
        ({}, 201),
        ({"Content-Encoding": "identity"}, 201),
        ({"Content-Type": "text/plain"}, 415),
        ({"Content-Type": "application/json; charset=latin-1"}, 415),
        ({"Content-Type": "application/x-www-form-urlencoded"}, 415),
        ({"Content-Type": "application/jsonx"}, 415),
        ({"Content-Type": ""}, 415),
        ({"Content-Encoding": "gzip"}, 415),
    ],
)
async def test_a_body_is_plain_json(shelf: Shelf, headers: dict[str, str], status: int) -> None:
    await shelf.move("receive", "tea", 1)
    answer = await shelf.client.post(
        f"{shelf.path}/reservations",
        content=json.dumps({"lines": lines_of([("tea", 1)])}).encode(),
        headers={**shelf.key(), **headers},
    )
    assert answer.status_code == status
    if status == 415:
        problem = assert_problem(answer, 415, "unsupported_media_type")
        assert problem["errors"][0]["header"] in headers


@pytest.mark.parametrize("content", [b"", b"{}"])
async def test_an_optional_body_may_be_empty_whatever_it_is_called(
    shelf: Shelf, content: bytes
) -> None:
    await shelf.move("receive", "tea", 1)
    the_id = (await shelf.reserve(("tea", 1))).json()["id"]
    for verb in ("confirm", "release"):
        answer = await shelf.client.post(
            f"{shelf.merchant_path}/reservations/{the_id}/{verb}",
            content=content,
            headers={} if content else {"Content-Type": "application/x-www-form-urlencoded"},
        )
        assert answer.status_code == 200


@pytest.mark.parametrize(
    ("sent", "echoed"),
    [
        ("checkout-42", True),
        ("a b", True),
        ("x" * 128, True),
        ("x" * 129, False),
        ("é", False),
        ("a\tb", False),
        ("", False),
    ],
)
async def test_a_request_id_is_echoed_where_it_is_printable(
    api: Api, sent: str, echoed: bool
) -> None:
    answer = await api.client_of(None).get("/livez", headers=[(b"request-id", sent.encode())])
    assert (answer.headers["request-id"] == sent) is echoed
    assert 1 <= len(answer.headers["request-id"]) <= 128


async def test_each_request_has_an_id_of_its_own(api: Api) -> None:
    client = api.client_of(None)
    ids = {
        (await client.get(path)).headers["request-id"]
        for path in ("/livez", "/livez", "/nowhere", "/docs", "/openapi.json")
    }
    assert len(ids) == 5


async def test_what_is_not_served_is_a_problem_too(api: Api) -> None:
    client = api.client_of(None)
    for path in ("/", "/v1", "/livez/", "/v1/merchants//locations", "/docs/assets/nothing", "/%00"):
        assert_problem(await client.get(path), 404, "not_found")
    answer = await client.delete(f"/v1/merchants/{api.merchant}/locations/l/reservations")
    assert_problem(answer, 405, "method_not_allowed")
    assert answer.headers["allow"] == "GET, HEAD, POST"
    for path in ("/docs", "/openapi.json", "/docs/assets/docs.js"):
        assert_problem(await client.post(path), 405, "method_not_allowed")


async def test_the_assets_are_no_way_to_other_files(api: Api) -> None:
    client = api.client_of(None)
    for path in (
        "/docs/assets/%2e%2e/app.py",
        "/docs/assets/..%2fapp.py",
        "/docs/assets//etc/passwd",
    ):
        answer = await client.get(path)
        assert answer.status_code == 404, path


async def test_a_query_has_a_maximum_of_fields(shelf: Shelf) -> None:
    query = "&".join(f"limit={n}" for n in range(MAX_QUERY_FIELDS + 1))
    assert_problem(await shelf.client.get(f"{shelf.path}/stock?{query}"), 400, "invalid_request")


async def test_a_query_where_none_is_read_is_refused(shelf: Shelf) -> None:
    answer = await shelf.client.get(f"{shelf.path}/stock/tea?consistncy=strong")
    problem = assert_problem(answer, 400, "invalid_request")
    assert problem["errors"][0]["parameter"] == "consistncy"
