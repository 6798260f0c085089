from pathlib import Path

from tests.services import CommandLine


def test_rules_are_imported_listed_and_deleted(cli: CommandLine, tmp_path: Path) -> None:
    path = tmp_path / "rules.csv"
    path.write_text(
        "sku,alternative,of,for,direction,locations,approval\n"
        "beer-6,beer-12,1,2,both,leeds;york,\n"
        "oat-milk,soy-milk,,,,,yes\n"
    )
    assert cli.json("substitutes", "import", path) == {"imported": 2}
    assert cli.json("substitutes", "import", path) == {"imported": 2}
    beer, milk = cli.json("substitutes", "list")["data"]
    assert beer["alternatives"][0]["locations"] == ["leeds", "york"]
    assert (beer["alternatives"][0]["for"], milk["alternatives"][0]["approval"]) == (2, True)
    table = cli.run("substitutes", "list").stdout
    assert "leeds, york" in table
    assert "everywhere" in table

    path.write_text("sku,alternative,of,for\nbeer-12,beer-6,2,1\n")
    assert "beer-12 -> beer-6 -> beer-12" in cli.run("substitutes", "import", path, expect=1).stderr
    path.write_text("sku,alternative,of\nbeer-12,beer-6,many\n")
    refused = cli.run("substitutes", "import", path, expect=2).stderr
    assert "line 2: of is no whole number" in refused
    cli.json("substitutes", "delete", "oat-milk")
    assert "oat-milk" in cli.run("substitutes", "delete", "oat-milk", expect=1).stderr


def test_kits_are_imported_listed_and_deleted(cli: CommandLine, tmp_path: Path) -> None:
    path = tmp_path / "kits.csv"
    path.write_text("sku,component,quantity\ngift,mug,1\ngift,tea,2\n")
    assert cli.json("kits", "import", path) == {"imported": 1}
    (kit,) = cli.json("kits", "list")["data"]
    assert kit["components"] == [{"sku": "mug", "quantity": 1}, {"sku": "tea", "quantity": 2}]
    assert "gift" in cli.run("kits", "list").stdout
    path.write_text("sku,component,quantity\nbox,gift,1\n")
    assert "which is a kit itself" in cli.run("kits", "import", path, expect=1).stderr
    path.write_text("sku,component\nbox,gift\n")
    assert "must name the columns" in cli.run("kits", "import", path, expect=2).stderr
    cli.json("kits", "delete", "gift")
    assert cli.json("kits", "list") == {"data": []}
