import os
import random
from pathlib import Path

import pytest

from holdfast import replay
from holdfast.assortment import MISCOUNTED_SKU, assortment
from holdfast.calls import Stock
from tests.services import CommandLine

SALES_CSV = "HOLDFAST_SALES_CSV"
"""Names a big file of real sales, where a machine has one."""


def sales_file(tmp_path: Path, baskets: int = 120) -> Path:
    """Write sales as real ones are: quantities of 0, fuel by the thousand, and a few bad rows."""
    draw = random.Random(7)
    lines = ["sold_at,store_id,basket_id,sku,quantity"]
    for number in range(baskets):
        moment = f"2017-01-01T{number // 60 % 24:02}:{number % 60:02}:00Z"
        store = f"store {draw.randrange(4)}"
        for _ in range(draw.randint(1, 6)):
            quantity = draw.choice((0, 1, 1, 1, 2, 3))
            lines.append(f"{moment},{store},b{number},sku/{draw.randrange(9)},{quantity}")
        if number % 10 == 0:
            lines.append(f"{moment},{store},b{number},fuel,{draw.randint(5_000, 30_000)}")
    lines += ["2017-01-01T00:00:00Z,s,b,mug,-1", "not,a,sale"]
    path = tmp_path / "sales.csv"
    path.write_text("\n".join(lines) + "\n")
    return path


def test_a_replay_balances(cli: CommandLine, tmp_path: Path) -> None:
    path = sales_file(tmp_path)
    report = cli.json("replay", path, "--ttl-seconds", 1, "--merchant", cli.merchant)
    assert report["balanced"] is True
    assert all(check["wanted"] == check["found"] for check in report["account"])
    assert report["received_units"] == report["on_hand_units"] + report["committed_units"]
    assert report["oversold_units"] == report["reserved_units"] == 0
    assert report["bulk_lines"] == 12
    assert report["zero_lines"] > 0
    assert report["bad_lines"] == 2
    assert min(report["committed_carts"], report["released_carts"], report["expired_carts"]) > 0
    assert report["latency"]["reserve"]["calls"] == report["carts"]
    on_hand = sum(
        row["on_hand"]
        for place in cli.rows("stock")
        for row in cli.rows("stock", place["location"])
    )
    assert on_hand == report["on_hand_units"]


def test_a_shop_that_runs_short_refuses_and_balances(cli: CommandLine, tmp_path: Path) -> None:
    path = sales_file(tmp_path)
    report = cli.json("replay", path, "--ttl-seconds", 1, "--stock-factor", 0.5)
    assert report["refused_carts"] > 0
    assert report["balanced"] is True
    # A merchant of its own, whatever the environment says: a replay never mixes with real stock.
    assert report["settings"]["merchant"].startswith("replay-")


def test_what_a_person_reads(cli: CommandLine, tmp_path: Path) -> None:
    result = cli.run("replay", sales_file(tmp_path, 20), "--commit", 1, "--release", 0)
    assert "The account balances." in result.stdout
    assert "column quantity" in result.stderr
    for word in ("p50 ms", "p95 ms", "p99 ms", "requests/s", "oversold 0"):
        assert word in result.stdout


def test_a_merchant_with_stock_is_refused(cli: CommandLine, tmp_path: Path) -> None:
    cli.run("move", "receive", "leeds", "mug", 1)
    result = cli.run("replay", sales_file(tmp_path), "--merchant", cli.merchant, expect=2)
    assert "has stock already" in result.stderr


def test_an_account_that_does_not_balance_is_exit_code_1(
    cli: CommandLine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read_back = replay.Replay._read_back

    async def lose_a_row(job: replay.Replay) -> dict[replay.Place, Stock]:
        rows = await read_back(job)
        rows.popitem()
        return rows

    monkeypatch.setattr(replay.Replay, "_read_back", lose_a_row)
    result = cli.run("replay", sales_file(tmp_path, 5), "--ttl-seconds", 1, expect=1)
    assert "DOES NOT BALANCE" in result.stdout


@pytest.mark.slow
@pytest.mark.skipif(SALES_CSV not in os.environ, reason=f"{SALES_CSV} names no file")
def test_the_real_sales_balance(cli: CommandLine) -> None:
    report = cli.json("replay", os.environ[SALES_CSV])
    assert report["balanced"] is True
    assert report["oversold_units"] == 0
    assert report["carts"] == report["baskets"] > 0


def test_the_demo_keeps_a_shop_open_for_a_while(cli: CommandLine) -> None:
    counts = cli.json(
        *("demo", "--merchant", cli.merchant, "--carts-per-second", 50),
        *("--seconds", 9, "--day-seconds", 20),
    )
    assert counts["reserved"] > 10
    assert counts["deliveries"] >= 1
    assert counts["unanswered"] == counts["ended_meanwhile"] == 0
    assert counts["till_sales"] > 0
    # An hour passes in less than a second, so it was 16 o'clock meanwhile.
    (miscount,) = cli.rows("history", MISCOUNTED_SKU, "--reference", "count-day-1")
    assert miscount["details"]["quantity"] > 1000
    places = [place["location"] for place in cli.rows("stock")]
    assert places == ["harbour-store", "old-town-store", "online-warehouse", "riverside-store"]
    rows = [row for place in places for row in cli.rows("stock", place, "--limit", 500)]
    assert len(rows) == len(places) * len(assortment(1)) > 800
    assert sum(row["reserved"] for row in rows) > 0
