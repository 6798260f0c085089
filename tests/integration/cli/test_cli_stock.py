import csv
import json
from pathlib import Path

import pytest

from holdfast import stock_file
from tests.services import CommandLine

GOOD = "location,sku,on_hand,safety_stock\nleeds,mug,5,1\nleeds,cup,12,\nyork,mug/blue,7,2\n"


def write(tmp_path: Path, text: str, name: str = "stock.csv") -> Path:
    path = tmp_path / name
    path.write_text(text)
    return path


def on_hand(cli: CommandLine, location: str) -> dict[str, int]:
    return {row["sku"]: row["on_hand"] for row in cli.rows("stock", location)}


def test_a_file_is_imported_and_shown(cli: CommandLine, tmp_path: Path) -> None:
    report = cli.json("import", write(tmp_path, GOOD))
    assert (report["applied"], report["settings_set"], report["is_complete"]) == (3, 2, True)
    assert [row["location"] for row in cli.rows("stock")] == ["leeds", "york"]
    assert on_hand(cli, "leeds") == {"cup": 12, "mug": 5}
    row = cli.json("stock", "york", "mug/blue")
    assert (row["on_hand"], row["safety_stock"], row["available"]) == (7, 2, 5)


def test_a_bad_row_is_named_and_the_rest_applied(cli: CommandLine, tmp_path: Path) -> None:
    verdicts = tmp_path / "verdicts.csv"
    path = write(tmp_path, GOOD.replace("cup,12", "cup,twelve"))
    result = cli.run("import", path, "--verdicts", verdicts, expect=1)
    assert "line 3, column on_hand: must be a whole number" in result.stderr
    assert on_hand(cli, "leeds") == {"mug": 5}
    with verdicts.open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [(row["line"], row["verdict"], row["column"]) for row in rows] == [
        ("2", "applied", ""),
        ("3", "invalid", "on_hand"),
        ("4", "applied", ""),
    ]


def test_the_same_import_again_is_a_replay_and_undoes_nothing(
    cli: CommandLine, tmp_path: Path
) -> None:
    path = write(tmp_path, GOOD)
    cli.run("import", path)
    cli.run("move", "receive", "leeds", "mug", 3)
    mug = cli.json("stock", "leeds", "mug")
    report = cli.json("import", path)
    assert (report["applied"], report["replayed"]) == (0, 3)
    assert cli.json("stock", "leeds", "mug") == mug


def test_an_import_that_was_cut_short_goes_on(cli: CommandLine, tmp_path: Path) -> None:
    first_part = write(tmp_path, "".join(GOOD.splitlines(keepends=True)[:2]), "part.csv")
    cli.run("import", first_part, "--import-id", "monday")
    report = cli.json("import", write(tmp_path, GOOD), "--import-id", "monday")
    assert (report["applied"], report["replayed"], report["refused"]) == (2, 1, 0)


def test_all_or_nothing_applies_nothing_of_a_bad_file(cli: CommandLine, tmp_path: Path) -> None:
    path = write(tmp_path, GOOD.replace("cup,12", "cup,-1"))
    verdicts = tmp_path / "verdicts.csv"
    report = cli.json("import", path, "--all-or-nothing", "--verdicts", verdicts, expect=1)
    assert (report["applied"], report["invalid"], report["not_applied"]) == (0, 1, 2)
    assert cli.rows("stock") == []
    assert verdicts.read_text().count("not_applied") == 2
    good = cli.json("import", write(tmp_path, GOOD), "--all-or-nothing")
    assert good["applied"] == 3


def test_all_or_nothing_says_what_stands_when_the_service_refuses_in_mid_course(
    cli: CommandLine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stock_file, "MAX_BATCH_MOVEMENTS", 2)
    lines = [f"leeds,s{n},{n}\n" for n in range(6)]
    header = "location,sku,on_hand\n"
    # Line 4 was booked with another number before, so that its key is refused now.
    earlier = write(tmp_path, f"{header}\n\nleeds,s2,99\n", "earlier.csv")
    cli.run("import", earlier, "--import-id", "night")
    path = write(tmp_path, header + "".join(lines))
    result = cli.run("import", path, "--import-id", "night", "--all-or-nothing", expect=1)
    assert "line 4" in result.stderr
    assert "idempotency_key_reused" in result.stderr
    assert "Stopped after line 5" in result.stderr
    assert "--import-id night" in result.stderr
    # Lines 2, 3 and 5 stand, line 4 is as it was, and nothing after line 5 was sent.
    assert on_hand(cli, "leeds") == {"s0": 0, "s1": 1, "s2": 99, "s3": 3}


@pytest.mark.parametrize("suffix", ["csv", "ndjson"])
def test_what_is_exported_is_imported_again(cli: CommandLine, tmp_path: Path, suffix: str) -> None:
    skus = ["mug", "a,b", 'say "x"', "two\nlines", "קפה", "..", "{hf}:x", " spaced "]
    rows = [
        {"location": location, "sku": sku, "on_hand": number, "safety_stock": number % 3}
        for location in ("leeds", "a/b")
        for number, sku in enumerate(skus)
    ]
    source = write(tmp_path, "".join(json.dumps(row) + "\n" for row in rows), "in.ndjson")
    assert cli.json("import", source)["applied"] == len(rows)
    target = tmp_path / f"out.{suffix}"
    assert cli.json("export", "--output", target)["rows"] == len(rows)
    other = CommandLine(cli.environment, f"{cli.merchant}-copy")
    report = other.json("import", target)
    assert (report["applied"], report["invalid"]) == (len(rows), 0)
    assert other.run("export").stdout == cli.run("export").stdout
    assert other.rows("export") == sorted(
        rows, key=lambda row: (str(row["location"]).encode(), str(row["sku"]).encode())
    )


def test_terms_are_imported_again_and_exported(cli: CommandLine, tmp_path: Path) -> None:
    path = write(
        tmp_path,
        "location,sku,on_hand,safety_stock,backorder_limit,buyer_cap,channels\n"
        "leeds,poster,40,1,20,2 per day,partner:x cap 10; store minimum 5\n"
        "leeds,mug,5,,,,\n"
        "leeds,cup,5,,9,2 per fortnight,\n",
    )
    result = cli.run("import", path, expect=1)
    assert "line 4, column buyer_cap: is '2 per fortnight'; write it as" in result.stderr
    poster = cli.json("stock", "leeds", "poster")
    assert poster["terms"] == {
        "backorder_limit": 20,
        "buyer_cap": {"units": 2, "window_seconds": 86_400},
        "channels": {
            "partner:x": {"cap": 10, "minimum": 0, "held": 0},
            "store": {"cap": None, "minimum": 5, "held": 0},
        },
    }
    # Run again it changes nothing; what a later file leaves out stays, what it names ends.
    assert cli.json("import", path, expect=1)["replayed"] == 2
    assert cli.json("stock", "leeds", "poster") == poster
    some = "location,sku,on_hand,buyer_cap,channels\nleeds,poster,40,none,web cap 7\n"
    assert cli.json("import", write(tmp_path, some))["settings_set"] == 1

    out = cli.run("export", "--terms").stdout
    assert out.splitlines() == [
        "location,sku,on_hand,safety_stock,backorder_limit,buyer_cap,channels",
        "leeds,mug,5,0,0,none,none",
        "leeds,poster,40,1,20,none,web cap 7",
    ]
    other = CommandLine(cli.environment, f"{cli.merchant}-copy")
    assert other.json("import", write(tmp_path, out))["applied"] == 2
    assert other.run("export", "--terms").stdout == out


def test_standard_input_is_imported(cli: CommandLine) -> None:
    result = cli.run("import", "-", stdin=GOOD.encode())
    assert "3 applied" in result.stdout


def test_movements_are_booked_once_a_key(cli: CommandLine) -> None:
    booked = cli.json("move", "receive", "leeds", "mug", 5, "--idempotency-key", "k1")
    assert (booked["on_hand_change"], booked["replayed"]) == (5, False)
    again = cli.json("move", "receive", "leeds", "mug", 5, "--idempotency-key", "k1")
    assert again == {**booked, "replayed": True}
    adjusted = cli.json("move", "adjust", "leeds", "mug", "--reason", "damaged", "--", "-2")
    assert adjusted["stock"]["on_hand"] == 3
    other = cli.json("move", "receive", "leeds", "mug", 6, "--idempotency-key", "k1", expect=1)
    assert other["error"]["code"] == "idempotency_key_reused"


def test_a_listing_says_that_there_is_more(cli: CommandLine) -> None:
    lines = "".join(f"leeds,s{n},1\n" for n in range(5))
    cli.run("import", "-", stdin=("location,sku,on_hand\n" + lines).encode())
    result = cli.run("stock", "leeds", "--limit", 3)
    assert result.stdout.count("\n") == 4
    assert "more than 3" in result.stderr
    assert "more than" not in cli.run("stock", "leeds", "--limit", 5).stderr


def test_an_unknown_row_is_refused(cli: CommandLine) -> None:
    assert cli.json("stock", "leeds", "nope", expect=1)["error"]["code"] == "row_not_found"
    assert "no row for SKU nope" in cli.run("stock", "leeds", "nope", expect=1).stderr


def test_a_file_that_is_none_is_told(cli: CommandLine, tmp_path: Path) -> None:
    assert "lacks" in cli.run("import", write(tmp_path, "a,b\n"), expect=2).stderr
    assert "No such file" in cli.run("import", tmp_path / "missing.csv", expect=4).stderr


def test_supplies_are_announced_promised_and_received(cli: CommandLine) -> None:
    cli.run("supplies", "expect", "leeds", "console", "po-1", "2026-12-07", 10)
    shown = cli.run("supplies", "expect", "leeds", "console", "po-1", "2026-12-11", 8).stdout
    assert "8 units are to come" in shown
    assert "by 2026-12-11" in shown
    listed = cli.json("supplies", "list", "leeds", "console")["data"]
    assert listed == [{"supply": "po-1", "expected_on": "2026-12-11", "quantity": 8}]
    held = cli.run("reserve", "leeds", "console=3", "--by", "2026-12-24").stdout
    assert "3 of them backordered and promised by 2026-12-11" in held
    cli.run("reserve", "leeds", "console=6", "--by", "2026-12-24", expect=1)
    assert "2026-12-11" in cli.run("supplies", "waiting", "leeds", "console").stdout
    cli.run("move", "receive", "leeds", "console", 2, "--supply", "po-1")
    (waiting,) = cli.json("supplies", "waiting", "leeds", "console")["data"]
    assert (waiting["units"], waiting["promised_by"]) == (1, "2026-12-11")
    assert cli.json("supplies", "cancel", "leeds", "console", "po-1")["stock"]["incoming"] == 0
    cli.run("supplies", "expect", "leeds", "console", "po-2", "tomorrow", 10, expect=1)
