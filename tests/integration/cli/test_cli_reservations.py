from tests.services import CommandLine


def stocked(cli: CommandLine, quantity: int = 5) -> None:
    cli.run("move", "receive", "leeds", "mug", quantity)


def available(cli: CommandLine) -> int:
    units: int = cli.json("stock", "leeds", "mug")["available"]
    return units


def test_a_cart_is_held_confirmed_and_committed_short(cli: CommandLine) -> None:
    stocked(cli)
    held = cli.json("reserve", "leeds", "mug=3", "--order-ref", "cart-1")
    assert (held["state"], held["order_ref"]) == ("held", "cart-1")
    assert held["expires_at"].endswith("Z")
    assert available(cli) == 2
    assert [one["id"] for one in cli.rows("reservations", "leeds")] == [held["id"]]
    assert cli.json("confirm", held["id"], "--order-ref", "o-1")["state"] == "confirmed"
    done = cli.json("commit", held["id"], "mug=1")
    (line,) = done["lines"]
    assert (line["sku"], line["quantity"], line["picked"]) == ("mug", 3, 1)
    assert available(cli) == 4
    assert cli.json("commit", held["id"], "mug=1")["replayed"] is True
    assert cli.json("reservation", held["id"])["state"] == "committed"
    assert cli.rows("reservations", "leeds") == []


def test_a_hold_is_extended_and_released(cli: CommandLine) -> None:
    stocked(cli)
    held = cli.json("reserve", "leeds", "mug=3", "--ttl-seconds", 60)
    longer = cli.json("extend", held["id"], "--ttl-seconds", 600, "--idempotency-key", "e1")
    assert longer["expires_at"] > held["expires_at"]
    assert cli.json("release", held["id"], "--reason", "changed mind")["state"] == "released"
    assert available(cli) == 5
    refused = cli.json("commit", held["id"], expect=1)
    assert refused["error"]["code"] == "reservation_ended"


def test_what_does_not_fit_is_refused_with_every_short_line(cli: CommandLine) -> None:
    stocked(cli)
    result = cli.run("reserve", "leeds", "mug=9", "cup=1", expect=1)
    assert result.stdout == ""
    assert "mug: requested 9, available 5" in result.stderr
    assert "cup, which has no row here: requested 1, available 0" in result.stderr
    error = cli.json("reserve", "leeds", "mug=9", expect=1)["error"]
    assert (error["code"], error["status"]) == ("insufficient_stock", 409)
    assert error["errors"][0]["available"] == 5
    assert available(cli) == 5


def test_partial_holds_what_there_is(cli: CommandLine) -> None:
    stocked(cli)
    held = cli.json("reserve", "leeds", "mug=9", "--partial")
    assert held["lines"][0]["quantity"] == 5
    assert held["missing"] == [{"sku": "mug", "quantity": 4}]


def test_a_repeated_command_holds_once(cli: CommandLine) -> None:
    stocked(cli)
    first = cli.json("reserve", "leeds", "mug=2", "--idempotency-key", "k1")
    again = cli.json("reserve", "leeds", "mug=2", "--idempotency-key", "k1")
    assert (again["id"], again["replayed"]) == (first["id"], True)
    assert available(cli) == 3


def test_the_last_equals_sign_divides(cli: CommandLine) -> None:
    cli.run("move", "receive", "leeds", "size=L", 5)
    held = cli.json("reserve", "leeds", "size=L=2")
    assert held["lines"][0]["sku"] == "size=L"
    assert held["lines"][0]["quantity"] == 2


def test_what_a_person_reads(cli: CommandLine) -> None:
    stocked(cli)
    result = cli.run("reserve", "leeds", "mug=2")
    first, second = result.stdout.splitlines()
    assert first.startswith("rsv_")
    assert "held until" in first
    assert second == "  mug  2 units"
    assert "held" in cli.run("reservations", "leeds").stdout


def test_an_id_cannot_drive_the_terminal(cli: CommandLine) -> None:
    cli.run("move", "receive", "leeds", "red\x1b[31m", 5)
    assert "\x1b" not in cli.run("stock", "leeds").output
    assert "\x1b" not in cli.run("reserve", "leeds", "red\x1b[31m=1").output
