import io
import json
from pathlib import Path
from typing import Any

import httpx
import pytest

from engine.limits import MAX_BATCH_MOVEMENTS
from holdfast import stock_file
from holdfast.calls import Pool, Stock
from holdfast.client import ApiError, AsyncClient, RetryPolicy, ServiceUnreachable
from holdfast.stock_file import (
    BadRow,
    FileRefused,
    Format,
    RowVerdict,
    StockFile,
    StockImport,
    StockRow,
    Verdict,
    write_rows,
)
from holdfast.stock_terms import AskedTerms

QUICK = RetryPolicy(max_attempts=2, first_wait_seconds=0.0, max_wait_seconds=0.0)


def read(tmp_path: Path, content: bytes, name: str = "stock.csv") -> list[StockRow | BadRow]:
    path = tmp_path / name
    path.write_bytes(content)
    with StockFile(str(path)) as file:
        return list(file.rows())


def test_rows_are_read_with_their_lines(tmp_path: Path) -> None:
    rows = read(tmp_path, b"location,sku,on_hand,safety_stock\nleeds,mug,5,1\n\nleeds,cup,0,\n")
    assert rows == [StockRow(2, "leeds", "mug", 5, 1), StockRow(4, "leeds", "cup", 0, None)]


def test_columns_stand_in_any_order_behind_a_byte_order_mark(tmp_path: Path) -> None:
    rows = read(tmp_path, b"\xef\xbb\xbfOn_Hand, SKU ,location\r\n5,mug,leeds\r\n")
    assert rows == [StockRow(2, "leeds", "mug", 5, None)]


def test_a_row_over_several_lines_is_named_by_its_first(tmp_path: Path) -> None:
    rows = read(tmp_path, b'location,sku,on_hand\nleeds,"a\nb",5\nleeds,c,x\n')
    assert rows[0] == StockRow(2, "leeds", "a\nb", 5, None)
    assert isinstance(rows[1], BadRow)
    assert rows[1].line == 4


@pytest.mark.parametrize(
    ("row", "column"),
    [
        (b"leeds,mug,-1,0", "on_hand"),
        (b"leeds,mug,1.0,0", "on_hand"),
        (b"leeds,mug,1e3,0", "on_hand"),
        (b"leeds,mug,0x10,0", "on_hand"),
        (b"leeds,mug,nan,0", "on_hand"),
        (b"leeds,mug,,0", "on_hand"),
        (b'leeds,mug,"1,000",0', "on_hand"),
        (b"leeds,mug,1000000000001,0", "on_hand"),
        (b"leeds,mug," + b"9" * 5000 + b",0", "on_hand"),
        ("leeds,mug,\N{ARABIC-INDIC DIGIT FIVE},0".encode(), "on_hand"),
        (b"leeds,mug,1,-1", "safety_stock"),
        (b"leeds,mug,1,1000000001", "safety_stock"),
        (b",mug,1,0", "location"),
        (b"leeds,,1,0", "sku"),
        (b"leeds," + b"x" * 201 + b",1,0", "sku"),
        (b"leeds,\xff\xfe,1,0", "sku"),
        (b"leeds,mug,1", ""),
        (b"leeds,mug,1,0,0", ""),
        (b'leeds,"mug"x,1,0', ""),
    ],
)
def test_a_bad_row_is_named_and_the_next_one_read(tmp_path: Path, row: bytes, column: str) -> None:
    header = b"location,sku,on_hand,safety_stock\n"
    rows = read(tmp_path, header + row + b"\nleeds,cup,3,\n")
    bad, good = rows
    assert isinstance(bad, BadRow)
    assert (bad.line, bad.column) == (2, column)
    assert bad.detail
    assert len(bad.detail) < 200
    assert good == StockRow(3, "leeds", "cup", 3, None)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "no header"),
        (b"location,sku\nleeds,mug\n", "lacks on_hand"),
        (b"location;sku;on_hand\n", "commas"),
        (b"location,sku,on_hand,onhand\n", "unknown columns onhand"),
        (b"location,sku,on_hand,sku\n", "twice"),
        (b"location,sku,on_hand\nleeds," + b"x" * 70_000 + b",1\n", "longer than"),
    ],
)
def test_a_file_that_is_no_stock_file_is_refused(tmp_path: Path, content: bytes, said: str) -> None:
    with pytest.raises(FileRefused, match=said):
        read(tmp_path, content)


@pytest.mark.parametrize(
    ("document", "column"),
    [
        (b'{"location":"leeds","sku":"mug"}', "on_hand"),
        (b'{"location":"leeds","sku":"mug","on_hand":true}', "on_hand"),
        (b'{"location":"leeds","sku":"mug","on_hand":1.5}', "on_hand"),
        (b'{"location":"leeds","sku":7,"on_hand":1}', "sku"),
        (b'{"location":"leeds","sku":"mug","on_hand":1,"extra":1}', "extra"),
        (b"[1]", ""),
        (b"{", ""),
        (b"[" * 60_000, ""),
    ],
)
def test_a_bad_ndjson_row_is_named(tmp_path: Path, document: bytes, column: str) -> None:
    good = b'{"location":"leeds","sku":"cup","on_hand":3,"safety_stock":null}\n'
    rows = read(tmp_path, document + b"\n" + good, "stock.ndjson")
    assert isinstance(rows[0], BadRow)
    assert (rows[0].line, rows[0].column) == (1, column)
    assert rows[1] == StockRow(2, "leeds", "cup", 3, None)


@pytest.mark.parametrize("file_format", [*Format])
def test_what_is_written_is_read_back(tmp_path: Path, file_format: Format) -> None:
    skus = ["mug", "a,b", 'say "cup"', "two\nlines", "קפה", "=1+1", " spaced ", "{hf}:x"]
    rows = [
        Stock(
            merchant="acme",
            location="leeds",
            sku=sku,
            on_hand=number,
            reserved=0,
            safety_stock=number,
            available=0,
            shortfall=0,
            deficit=0,
            version=1,
        )
        for number, sku in enumerate(skus)
    ]
    stream = io.StringIO()
    assert write_rows(stream, rows, file_format) == len(rows)
    back = read(tmp_path, stream.getvalue().encode(), f"stock.{file_format.value}")
    assert [(row.location, row.sku) for row in back] == [("leeds", sku) for sku in skus]
    taken = [row for row in back if isinstance(row, StockRow)]
    assert [row.on_hand for row in taken] == list(range(len(skus)))
    assert [row.safety_stock for row in taken] == list(range(len(skus)))


def test_the_import_id_depends_on_merchant_and_content(tmp_path: Path) -> None:
    first, second = tmp_path / "a.csv", tmp_path / "b.csv"
    first.write_text("location,sku,on_hand\nleeds,mug,5\n")
    second.write_text("location,sku,on_hand\nleeds,mug,6\n")
    with StockFile(str(first)) as one, StockFile(str(second)) as other:
        acme = one.import_id("acme")
        assert acme == one.import_id("acme")
        assert len({acme, one.import_id("bella"), other.import_id("acme")}) == 3
        assert one.lines == 2


class Shelves:
    """A service of batches and settings, with what a test wants to go wrong."""

    def __init__(self) -> None:
        self.batches: list[list[dict[str, Any]]] = []
        self.settings: list[httpx.Request] = []
        self.refused_skus: set[str] = set()
        self.applied: set[str] = set()
        self.versions: dict[str, int] = {}
        self.moves_on = 0
        self.terms: dict[str, Any] = {}
        self.away_after_batches: int | None = None

    def stock(self, sku: str) -> dict[str, Any]:
        return {
            "merchant": "acme",
            "location": "leeds",
            "sku": sku,
            "on_hand": 0,
            "reserved": 0,
            "safety_stock": 0,
            "available": 0,
            "shortfall": 0,
            "deficit": 0,
            "version": self.versions.get(sku, 1),
            "terms": self.terms,
        }

    def handle(self, request: httpx.Request) -> httpx.Response:
        if request.url.path.endswith("/batch"):
            return self.batch(json.loads(request.content)["movements"])
        sku = request.url.path.split("/stock/")[1].split("/")[0]
        if request.method == "GET":
            return httpx.Response(200, json=self.stock(sku))
        self.settings.append(request)
        expected = request.headers["If-Match"].strip('"')
        actual = self.versions.get(sku, 1)
        if self.moves_on:
            self.moves_on -= 1
            self.versions[sku] = actual + 1
        if expected != str(self.versions.get(sku, 1)):
            problem = {"code": "version_conflict", "status": 412, "detail": "stale"}
            return httpx.Response(412, json=problem)
        return httpx.Response(200, json=self.stock(sku))

    def batch(self, movements: list[dict[str, Any]]) -> httpx.Response:
        if self.away_after_batches == len(self.batches):
            raise httpx.ConnectError("away")
        self.batches.append(movements)
        return httpx.Response(
            200,
            json={"data": [self.verdict(one) for one in movements]}
            | {"applied": 0, "replayed": 0, "refused": 0},
        )

    def verdict(self, movement: dict[str, Any]) -> dict[str, Any]:
        if movement["sku"] in self.refused_skus:
            problem = {"code": "limit_exceeded", "status": 422, "detail": "too many"}
            return {"id": movement["id"], "status": "refused", "error": problem}
        status = "replayed" if movement["id"] in self.applied else "applied"
        self.applied.add(movement["id"])
        booked = {
            **{name: movement[name] for name in ("id", "location", "type", "sku", "quantity")},
            "merchant": "acme",
            "on_hand_change": 0,
            "reason": "",
            "reference": movement["reference"],
            "at": "2026-11-23T15:38:04.123Z",
            "sequence": 1,
            "stock": self.stock(movement["sku"]),
        }
        return {"id": movement["id"], "status": status, "movement": booked}


def rows_of(count: int, *, safety_stock: int | None = None) -> list[StockRow | BadRow]:
    return [StockRow(line, "leeds", f"s{line}", line, safety_stock) for line in range(2, count + 2)]


async def run_import(
    shelves: Shelves, rows: list[StockRow | BadRow], *, stop_at_refusal: bool = False
) -> tuple[StockImport, list[RowVerdict]]:
    verdicts: list[RowVerdict] = []
    transport = httpx.MockTransport(shelves.handle)
    async with AsyncClient("http://holdfast.test", retry=QUICK, transport=transport) as client:
        job = StockImport(client, merchant="acme", import_id="i1", on_verdict=verdicts.append)
        try:
            await job.run(rows, stop_at_refusal=stop_at_refusal)
        except ServiceUnreachable:
            assert shelves.away_after_batches is not None
    return job, verdicts


async def test_rows_go_out_as_counts_in_batches_with_keys_of_their_lines() -> None:
    shelves = Shelves()
    job, verdicts = await run_import(shelves, rows_of(MAX_BATCH_MOVEMENTS + 1))
    assert [len(batch) for batch in shelves.batches] == [MAX_BATCH_MOVEMENTS, 1]
    assert shelves.batches[0][0] == {
        "id": "i1:2",
        "location": "leeds",
        "type": "count",
        "sku": "s2",
        "quantity": 2,
        "reference": "import:i1",
    }
    assert job.report.applied == MAX_BATCH_MOVEMENTS + 1
    assert job.report.is_clean
    assert [verdict.line for verdict in verdicts] == list(range(2, MAX_BATCH_MOVEMENTS + 3))


async def test_a_batch_stays_within_the_bytes_of_a_body(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stock_file, "MAX_BATCH_BYTES", 1_000)
    shelves = Shelves()
    job, _ = await run_import(shelves, rows_of(50))
    assert job.report.applied == 50
    assert all(len(json.dumps({"movements": one})) < 1_500 for one in shelves.batches)
    assert len(shelves.batches) > 3


async def test_one_bad_and_one_refused_row_leave_the_rest_applied() -> None:
    shelves = Shelves()
    shelves.refused_skus = {"s3"}
    rows: list[StockRow | BadRow] = [*rows_of(3), BadRow(5, "on_hand", "must be a number")]
    job, verdicts = await run_import(shelves, rows)
    assert [verdict.verdict for verdict in verdicts] == [
        Verdict.APPLIED,
        Verdict.REFUSED,
        Verdict.APPLIED,
        Verdict.INVALID,
    ]
    assert verdicts[1].code == "limit_exceeded"
    assert (verdicts[3].line, verdicts[3].column) == (5, "on_hand")
    assert job.report.is_complete
    assert not job.report.is_clean
    assert [problem.line for problem in job.report.problems] == [3, 5]


async def test_a_second_run_is_a_replay() -> None:
    shelves = Shelves()
    await run_import(shelves, rows_of(5))
    job, verdicts = await run_import(shelves, rows_of(5))
    assert {verdict.verdict for verdict in verdicts} == {Verdict.REPLAYED}
    assert (job.report.applied, job.report.replayed) == (0, 5)
    assert job.report.is_clean


async def test_an_import_stops_after_the_batch_of_a_refusal() -> None:
    shelves = Shelves()
    shelves.refused_skus = {"s5"}
    job, _ = await run_import(shelves, rows_of(MAX_BATCH_MOVEMENTS + 5), stop_at_refusal=True)
    assert len(shelves.batches) == 1
    assert job.report.applied_through_line == MAX_BATCH_MOVEMENTS + 1
    assert job.report.applied == MAX_BATCH_MOVEMENTS - 1
    assert not job.report.is_complete


async def test_an_import_that_lost_the_service_says_how_far_it_came() -> None:
    shelves = Shelves()
    shelves.away_after_batches = 1
    job, verdicts = await run_import(shelves, rows_of(MAX_BATCH_MOVEMENTS + 5))
    assert job.report.applied_through_line == MAX_BATCH_MOVEMENTS + 1
    assert len(verdicts) == MAX_BATCH_MOVEMENTS
    assert not job.report.is_complete


async def test_safety_stock_is_set_at_the_version_of_the_count() -> None:
    shelves = Shelves()
    shelves.versions = {"s2": 9}
    job, _ = await run_import(shelves, rows_of(1, safety_stock=3))
    request = shelves.settings[0]
    assert request.headers["If-Match"] == '"9"'
    assert request.headers["Idempotency-Key"] == "i1:2:safety_stock"
    assert json.loads(request.content) == {"safety_stock": 3}
    assert job.report.settings_set == 1


async def test_safety_stock_that_is_so_already_costs_no_call() -> None:
    shelves = Shelves()
    await run_import(shelves, rows_of(3, safety_stock=0))
    assert shelves.settings == []


async def test_terms_are_set_after_the_safety_stock_over_what_the_row_has() -> None:
    shelves = Shelves()
    shelves.terms = {"backorder_limit": 4, "buyer_cap": {"units": 2, "window_seconds": 60}}
    shelves.moves_on = 1
    rows: list[StockRow | BadRow] = [
        StockRow(2, "leeds", "mug", 5, 3, AskedTerms(buyer_cap=None)),
        StockRow(3, "leeds", "cup", 5, None, AskedTerms(backorder_limit=4)),
    ]
    job, verdicts = await run_import(shelves, rows)
    sent = [
        (request.url.path.rpartition("/")[2], json.loads(request.content))
        for request in shelves.settings
    ]
    # The first met a version that had moved on; cup has these terms already.
    settings, terms = ("settings", {"safety_stock": 3}), ("terms", {"backorder_limit": 4})
    assert sent == [settings, settings, terms]
    assert shelves.settings[2].headers["Idempotency-Key"] == "i1:2:terms"
    assert {verdict.verdict for verdict in verdicts} == {Verdict.APPLIED}
    assert job.report.settings_set == 1


async def test_terms_that_are_refused_are_named_by_their_column() -> None:
    shelves = Shelves()
    shelves.moves_on = 1_000
    asked = AskedTerms(channels={"web": Pool(cap=3)})
    _, verdicts = await run_import(shelves, [StockRow(2, "leeds", "mug", 5, None, asked)])
    assert (verdicts[0].verdict, verdicts[0].column) == (Verdict.REFUSED, "channels")
    assert "the count was applied, its terms not" in verdicts[0].detail


async def test_a_row_that_moves_on_meanwhile_is_tried_at_its_new_version() -> None:
    shelves = Shelves()
    shelves.moves_on = 2
    job, verdicts = await run_import(shelves, rows_of(1, safety_stock=3))
    keys = [request.headers["Idempotency-Key"] for request in shelves.settings]
    assert len(set(keys)) == len(keys) == 3
    assert verdicts[0].verdict is Verdict.APPLIED
    assert job.report.settings_set == 1


async def test_a_row_that_never_stands_still_is_refused_in_the_end() -> None:
    shelves = Shelves()
    shelves.moves_on = 1_000
    _, verdicts = await run_import(shelves, rows_of(1, safety_stock=3))
    assert len(shelves.settings) == stock_file.MAX_SETTINGS_ATTEMPTS
    assert (verdicts[0].verdict, verdicts[0].column) == (Verdict.REFUSED, "safety_stock")
    assert verdicts[0].code == "version_conflict"


async def test_a_row_twice_in_a_file_ends_as_its_later_line_says() -> None:
    shelves = Shelves()
    rows: list[StockRow | BadRow] = [
        StockRow(2, "leeds", "mug", 5, 1),
        StockRow(3, "leeds", "mug", 6, 2),
    ]
    await run_import(shelves, rows)
    assert [[one["quantity"] for one in batch] for batch in shelves.batches] == [[5], [6]]
    assert [json.loads(one.content)["safety_stock"] for one in shelves.settings] == [1, 2]


async def test_a_call_that_is_refused_as_a_whole_is_raised() -> None:
    def refuse(_: httpx.Request) -> httpx.Response:
        return httpx.Response(403, json={"code": "forbidden", "status": 403, "detail": "no"})

    transport = httpx.MockTransport(refuse)
    async with AsyncClient("http://holdfast.test", retry=QUICK, transport=transport) as client:
        job = StockImport(client, merchant="acme", import_id="i1")
        with pytest.raises(ApiError):
            await job.run(rows_of(2), stop_at_refusal=False)
    assert job.report.applied_through_line == 0


def test_a_report_keeps_a_bounded_number_of_problems() -> None:
    report = stock_file.ImportReport(merchant="acme", import_id="i1")
    for line in range(stock_file.MAX_KEPT_PROBLEMS + 7):
        report.take(RowVerdict(line=line, location="", sku="", verdict=Verdict.INVALID))
    assert len(report.problems) == stock_file.MAX_KEPT_PROBLEMS
    assert report.problems_omitted == 7
    assert report.invalid == stock_file.MAX_KEPT_PROBLEMS + 7
