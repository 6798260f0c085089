from pathlib import Path

import pytest

from engine.limits import MAX_LINES
from holdfast import sales_file
from holdfast.calls import Line
from holdfast.sales_file import read_sales
from holdfast.stock_file import FileRefused

HEADER = "sold_at,store_id,basket_id,sku,quantity\n"


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "sales.csv"
    path.write_text(text)
    return path


def test_lines_of_a_basket_become_one_cart_in_order_of_time(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        HEADER
        + "2017-01-01T12:00:10Z,s1,b2,mug,1\n"
        + "2017-01-01T12:00:00Z,s1,b1,mug,2\n"
        + "2017-01-01T12:00:10Z,s1,b2,cup,3\n"
        + "2017-01-01T13:00:00+01:00,s2,b1,mug,4\n",
    )
    sales = read_sales(path, bulk_quantity=1000)
    assert [(cart.at_seconds, cart.store, cart.lines) for cart in sales.carts] == [
        (0.0, "s1", (Line("mug", 2),)),
        (0.0, "s2", (Line("mug", 4),)),
        (10.0, "s1", (Line("mug", 1), Line("cup", 3))),
    ]
    assert sales.units == {("s1", "mug"): 3, ("s1", "cup"): 3, ("s2", "mug"): 4}
    assert (sales.lines, sales.baskets) == (4, 3)


def test_a_line_of_nothing_is_left_out_and_counted(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        HEADER
        + "2017-01-01T12:00:00Z,s1,b1,mug,0\n"
        + "2017-01-01T12:00:00Z,s1,b2,mug,0\n"
        + "2017-01-01T12:00:00Z,s1,b2,cup,1\n",
    )
    sales = read_sales(path, bulk_quantity=1000)
    assert sales.zero_lines == 2
    assert [cart.lines for cart in sales.carts] == [(Line("cup", 1),)]
    assert sales.units == {("s1", "cup"): 1}
    assert sales.baskets == 1


def test_bulk_is_kept_and_counted_apart(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        HEADER
        + "2017-01-01T12:00:00Z,s1,b1,fuel,18523\n"
        + "2017-01-01T12:00:00Z,s1,b1,mug,1000\n",
    )
    sales = read_sales(path, bulk_quantity=1000)
    assert (sales.bulk_lines, sales.bulk_units) == (1, 18523)
    assert sales.units["s1", "fuel"] == 18523


@pytest.mark.parametrize(
    ("row", "column"),
    [
        ("yesterday,s1,b1,mug,1", "sold_at"),
        ("2017-01-01T12:00:00Z,,b1,mug,1", "store_id"),
        ("2017-01-01T12:00:00Z,s1,,mug,1", "basket_id"),
        ("2017-01-01T12:00:00Z,s1,b1," + "x" * 201 + ",1", "sku"),
        ("2017-01-01T12:00:00Z,s1,b1,mug,-1", "quantity"),
        ("2017-01-01T12:00:00Z,s1,b1,mug,1.5", "quantity"),
        ("2017-01-01T12:00:00Z,s1,b1,mug,", "quantity"),
        ("2017-01-01T12:00:00Z,s1,b1,mug,1000000001", "quantity"),
        ("2017-01-01T12:00:00Z,s1,b1,mug", ""),
        ('2017-01-01T12:00:00Z,s1,"b"x,mug,1', ""),
    ],
)
def test_a_row_that_cannot_be_read_is_named(tmp_path: Path, row: str, column: str) -> None:
    path = write(tmp_path, HEADER + row + "\n2017-01-01T12:00:00Z,s1,b1,cup,1\n")
    sales = read_sales(path, bulk_quantity=1000)
    assert sales.bad_lines == 1
    assert [(bad.line, bad.column) for bad in sales.bad_rows] == [(2, column)]
    assert len(sales.carts) == 1


def test_a_basket_that_no_reservation_can_take_is_split(tmp_path: Path) -> None:
    rows = [f"2017-01-01T12:00:00Z,s1,b1,sku{n},1\n" for n in range(2 * MAX_LINES + 1)]
    sales = read_sales(write(tmp_path, HEADER + "".join(rows)), bulk_quantity=1000)
    assert [len(cart.lines) for cart in sales.carts] == [MAX_LINES, MAX_LINES, 1]
    assert (sales.baskets, sales.split_baskets) == (1, 1)


def test_a_file_without_its_columns_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileRefused, match="basket_id"):
        read_sales(write(tmp_path, "sold_at,store_id,sku,quantity\n"), bulk_quantity=1000)
    with pytest.raises(FileRefused, match="no header"):
        read_sales(write(tmp_path, ""), bulk_quantity=1000)


def test_a_file_that_is_too_long_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sales_file, "MAX_SALES_LINES", 3)
    rows = [f"2017-01-01T12:00:00Z,s1,b{n},mug,1\n" for n in range(4)]
    with pytest.raises(FileRefused, match="split it"):
        read_sales(write(tmp_path, HEADER + "".join(rows)), bulk_quantity=1000)
