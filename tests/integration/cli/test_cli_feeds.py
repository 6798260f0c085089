import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from tests.services import CommandLine


def ago(minutes: int) -> str:
    return (datetime.now(UTC) - timedelta(minutes=minutes)).isoformat()


def till(cli: CommandLine, path: Path, expect: int = 0) -> dict[str, int]:
    place = ("--location", "leeds", "--source", "till 4")
    return dict(json.loads(cli.run("feed", path, *place, "--json", expect=expect).stdout))


def test_a_file_of_events_is_booked_once_however_often_it_is_sent(
    cli: CommandLine, tmp_path: Path
) -> None:
    path = tmp_path / "events.csv"
    path.write_text(
        "event_id,type,sku,quantity,occurred_at,sequence,reason\n"
        f"1,receipt,mug,9,{ago(50)},1,\n"
        f"2,sale,mug,2,{ago(30)},2,\n"
        f"3,sale,mug,many,{ago(30)},3,\n"
        f"4,adjustment,mug,-1,{ago(20)},4,\n"
        f"5,sale,mug,1,2020-01-01T00:00:00Z,5,\n"
    )
    first, second = till(cli, path, expect=1), till(cli, path, expect=1)
    assert (first["applied"], first["rejected"], first["quarantined"]) == (2, 2, 1)
    assert (second["applied"], second["duplicate"]) == (0, 3)
    row = cli.json("stock", "leeds", "mug")
    assert row["on_hand"] == 7
    said = cli.run("feed", path, "--location", "leeds", "--source", "till 4", expect=1).stderr
    assert "line 4 (3): quantity is no whole number" in said
    assert "line 5 (4): reason: say why" in said

    listed = cli.json("feeds", "list", "--location", "leeds")
    assert [source["missing"] for source in listed["data"]] == [2]
    assert "till 4" in cli.run("feeds", "list", "--location", "leeds").stdout
    (aside,) = cli.json("feeds", "quarantine", "--location", "leeds")["data"]
    assert aside["why"] == "too_late"
    retried = cli.json("feeds", "retry", aside["id"], "--location", "leeds")
    assert retried == {"verdict": "quarantined", "why": "too_late"}
    assert cli.json("feeds", "drop", aside["id"], "--location", "leeds")["verdict"] == "dropped"
    skipped = ("feeds", "skip", "--location", "leeds", "--source", "till 4", "--through", "4")
    assert cli.json(*skipped)["verdict"] == "skipped"


def test_a_file_of_deliveries_names_what_was_announced(cli: CommandLine, tmp_path: Path) -> None:
    cli.run("supplies", "expect", "leeds", "mug", "po-1", "2026-12-07", 9)
    path = tmp_path / "delivery.csv"
    path.write_text(
        "event_id,type,sku,quantity,occurred_at,supply\n"
        f"1,receipt,mug,5,{ago(50)},po-1\n"
        f"2,receipt,mug,1,{ago(50)},po-2\n"
    )
    told = cli.run("feed", path, "--location", "leeds", "--source", "supplier")
    assert "line 3 (2): was booked, but mug is not expected with po-2, but with po-1" in told.stderr
    row = cli.json("stock", "leeds", "mug")
    assert (row["on_hand"], row["incoming"]) == (6, 4)


def test_a_policy_is_shown_changed_and_forgotten(cli: CommandLine) -> None:
    assert cli.json("feeds", "policy") == {}
    cli.json("feeds", "policy", "--late-hours", "96")
    changed = cli.json("feeds", "policy", "--when-offline", "freeze")
    assert changed == {"late_hours": 96, "when_offline": "freeze"}
    assert cli.json("feeds", "policy", "--location", "leeds") == {}
    assert cli.json("feeds", "policy", "--reset") == {}
    assert "168" in cli.run("feeds", "policy", "--late-hours", "1000", expect=1).stderr


def test_an_epcis_document_is_sent_whole_or_refused_with_the_pointer(
    cli: CommandLine, tmp_path: Path
) -> None:
    event: dict[str, Any] = {
        "type": "ObjectEvent",
        "eventID": "urn:uuid:1",
        "eventTime": ago(30),
        "eventTimeZoneOffset": "+00:00",
        "action": "OBSERVE",
        "bizStep": "receiving",
        "bizTransactionList": [
            {"type": "po", "bizTransaction": "urn:epcglobal:cbv:bt:5200001000008:4711"},
            {"type": "desadv", "bizTransaction": "https://supplier.example/desadv/9"},
        ],
        "quantityList": [{"epcClass": "https://id.gs1.org/01/09521568251204", "quantity": 12}],
    }
    document = {
        "@context": [],
        "type": "EPCISDocument",
        "schemaVersion": "2.0",
        "epcisBody": {"eventList": [event]},
    }
    path = tmp_path / "delivery.json"
    path.write_text(json.dumps(document))
    place = ("--location", "depot", "--source", "supplier")
    cli.run("supplies", "expect", "depot", "09521568251204", "4711", "2026-12-07", 20)
    assert cli.json("feed", path, *place, "--supply-from", "po")["applied"] == 1
    row = cli.json("stock", "depot", "09521568251204")
    assert (row["on_hand"], row["incoming"]) == (12, 8)
    event["errorDeclaration"] = {"declarationTime": ago(1), "reason": "did_not_occur"}
    path.write_text(json.dumps(document))
    assert cli.json("feed", path, *place)["applied"] == 1
    assert cli.json("stock", "depot", "09521568251204")["on_hand"] == 0
    event["ilmd"] = {}
    path.write_text(json.dumps(document))
    refused = cli.run("feed", path, *place, expect=2)
    assert "/epcisBody/eventList/0/ilmd" in refused.stderr
