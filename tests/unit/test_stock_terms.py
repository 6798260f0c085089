import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.limits import MAX_BUYER_WINDOW_MS, MAX_QUANTITY
from engine.outcomes import InvalidCommand
from holdfast.calls import BuyerCap, Pool, Terms
from holdfast.stock_terms import AskedTerms, read_terms, write_terms


@pytest.mark.parametrize(
    ("cells", "asked"),
    [
        ({"backorder_limit": " 5 "}, AskedTerms(backorder_limit=5)),
        ({"backorder_limit": 0, "channels": None}, AskedTerms(backorder_limit=0)),
        ({"backorder_limit": "none"}, AskedTerms(backorder_limit=0)),
        ({"buyer_cap": "2 per day"}, AskedTerms(buyer_cap=BuyerCap(2, 86_400))),
        ({"buyer_cap": "3  Per 12 hours"}, AskedTerms(buyer_cap=BuyerCap(3, 43_200))),
        (
            {"buyer_cap": "1 per 2 weeks", "channels": " "},
            AskedTerms(buyer_cap=BuyerCap(1, 1209600)),
        ),
        ({"buyer_cap": "none"}, AskedTerms(buyer_cap=None)),
        ({"channels": "web cap 0"}, AskedTerms(channels={"web": Pool(cap=0)})),
        (
            {"channels": "partner:x cap 40;the shop minimum 3 cap 9 ;"},
            AskedTerms(channels={"partner:x": Pool(cap=40), "the shop": Pool(cap=9, minimum=3)}),
        ),
        (
            {"channels": r'"a \"b\"; c cap 1" minimum 2'},
            AskedTerms(channels={'a "b"; c cap 1': Pool(minimum=2)}),
        ),
        ({"channels": "NONE"}, AskedTerms(channels={})),
    ],
)
def test_cells_are_read_as_people_write_them(cells: dict[str, object], asked: AskedTerms) -> None:
    assert read_terms(cells) == asked


def test_cells_that_say_nothing_ask_for_nothing() -> None:
    assert read_terms({}) is None
    assert read_terms({"backorder_limit": "", "buyer_cap": " ", "channels": None}) is None


@pytest.mark.parametrize(
    ("column", "cell", "said"),
    [
        ("backorder_limit", "-1", "must be a whole number, is '-1'"),
        ("backorder_limit", "1.0", "must be a whole number"),
        ("backorder_limit", str(MAX_QUANTITY + 1), "must be"),
        ("backorder_limit", 1.5, "must be text"),
        ("backorder_limit", True, "must be text"),
        ("buyer_cap", "2", "write it as 2 per day, 5 per 7 days, 2 per day per merchant or none"),
        ("buyer_cap", "2 per fortnight", "write it as"),
        ("buyer_cap", "0 per day", "units: must be"),
        ("buyer_cap", "1001 per day", "units: must be at most 1000"),
        ("buyer_cap", "1 per 400 days", "window_seconds: must be 1 to"),
        ("channels", "web", "cannot read 'web'; write them as partner:x cap 40"),
        ("channels", "web cap", "cannot read"),
        ("channels", "web cap 3 store minimum 2", "cannot read"),
        ("channels", "web cap 3; web minimum 2", "says something twice of 'web'"),
        ("channels", "web cap 3, store minimum 2", "cannot read"),
        ("channels", "web cap 3 cap 4", "says something twice"),
        ("channels", "web cap 3 minimum 4", "web.minimum: must be at most its cap, 3"),
        ("channels", "web minimum 0", "web: say a cap, a minimum or both"),
        ("channels", '"web cap 3', "cannot read"),
        ("channels", r'"\x" cap 3', "is no quoted name"),
        ("channels", "\udcff cap 3", "lone surrogates"),
        ("channels", f"{'a' * 129} cap 3", "must be at most 128 bytes"),
        ("channels", "; ".join(f"c{n} cap 1" for n in range(51)), "must be at most 50"),
        ("channels", {"web": {"cap": 3}}, "must be text"),
    ],
)
def test_a_cell_that_cannot_be_read_says_how_to_write_it(
    column: str, cell: object, said: str
) -> None:
    with pytest.raises(InvalidCommand) as refusal:
        read_terms({column: cell})
    assert refusal.value.field == column
    assert said in refusal.value.remedy


units = st.integers(0, MAX_QUANTITY)
names = st.text(
    st.characters(codec="utf-8") | st.sampled_from(';" \\cap minimum 3\n'), min_size=1, max_size=30
)
pools = st.builds(
    lambda one, other, kept: Pool(
        cap=max(one, other) if kept else None, minimum=min(one, other) if kept else one or 1
    ),
    units,
    units,
    st.booleans(),
)
any_terms = st.builds(
    Terms,
    backorder_limit=units,
    channels=st.dictionaries(names, pools, max_size=4),
    buyer_cap=st.none()
    | st.builds(BuyerCap, st.integers(1, 1_000), st.integers(1, MAX_BUYER_WINDOW_MS // 1_000)),
)


@given(any_terms, any_terms)
def test_what_is_written_makes_the_terms_of_any_row_the_same(terms: Terms, before: Terms) -> None:
    asked = read_terms(write_terms(terms))
    assert asked is not None
    assert asked.over(before) == terms


def test_what_a_file_does_not_name_a_row_keeps() -> None:
    had = Terms(
        backorder_limit=4,
        channels={"web": Pool(cap=3, minimum=1, held=2)},
        buyer_cap=BuyerCap(2, 60),
    )
    kept = Terms(backorder_limit=4, channels={"web": Pool(cap=3, minimum=1)})
    assert AskedTerms(buyer_cap=None).over(had) == kept
    assert AskedTerms().over(None) == Terms()
