"""The bench of offline policies: what each does to the same sales."""

from pathlib import Path

import pytest

from bench.offline import Result, Sale, cut, main

HOUR_MS = 3_600_000


def outcome(policy: str, *sales: Sale, stock: int = 2) -> tuple[int, int, int]:
    """Cut a stretch under a policy; return (promised, oversold, lost)."""
    buffers = {"live": None, "trust": lambda *_: 0, "one": lambda *_: 1, "freeze": lambda *_: 99}
    result = Result(policy)
    cut(result, 0, sales, stock, buffers[policy])
    return result.promised, result.oversold, result.lost


def test_a_till_that_nobody_hears_of_takes_what_was_promised() -> None:
    sales = (
        Sale(1, "tea", 2, online=False),
        Sale(2, "tea", 1, online=True),
        Sale(3, "tea", 1, online=True),
    )
    assert outcome("live", *sales) == (0, 0, 0)
    assert outcome("trust", *sales) == (2, 2, 0)
    assert outcome("one", *sales) == (1, 1, 0)
    assert outcome("freeze", *sales) == (0, 0, 0)


def test_what_is_held_back_for_nothing_is_lost() -> None:
    sales = (Sale(1, "tea", 1, online=True), Sale(2, "tea", 1, online=True))
    assert outcome("trust", *sales) == (2, 0, 0)
    assert outcome("one", *sales) == (1, 0, 1)
    assert outcome("freeze", *sales) == (0, 0, 2)


def test_the_command_prints_a_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = ["sold_at,store_id,basket_id,sku,quantity"]
    lines += [
        f"2017-01-{1 + n // 24:02}T{n % 24:02}:30:00Z,1,{n},{'tea' if n % 2 else 'mug'},1"
        for n in range(240)
    ]
    file = tmp_path / "sales.csv"
    file.write_text("\n".join(lines) + "\n")
    assert main([str(file), "--stock", "1", "--hours", "2"]) == 0
    said = capsys.readouterr().out
    for policy in ("live (not cut)", "trust", "buffer, 99.0%", "freeze"):
        assert policy in said
