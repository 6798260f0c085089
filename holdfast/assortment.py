"""What the sample shop sells: some hundred invented items of a kitchen and grocery shop.

Each family of items has variants; a seed draws how popular each is and how many fill a shelf.
Popularity falls off as in real shops: a few items are asked for again and again, most seldom.
"""

import random
from collections.abc import Iterator
from itertools import product
from typing import Final

import msgspec

VIRAL_SKU: Final = "game-console-launch-edition"
"""Few of it come, and once a day everybody wants one."""

MISCOUNTED_SKU: Final = "coffee-beans-dark-roast-1kg"
"""Once a day somebody miscounts it; it sells enough to have a history that gives that away."""

BEST_SELLER: Final = 1_500.0
"""Its popularity, some 15 % of what is sold."""

POPULAR_RANKS: Final = 40
"""Over which popularity falls to a half of the first item's."""


class Product(msgspec.Struct, frozen=True):
    """An item: how often it is asked for, and the units that fill its shelf."""

    sku: str
    title: str
    department: str
    popularity: float
    full_units: int


_FAMILIES: Final = (
    ("Pantry", "Coffee beans", ("dark roast", "light roast", "decaf"), ("250g", "500g", "1kg")),
    ("Pantry", "Ground coffee", ("espresso", "filter", "moka pot"), ("250g", "500g")),
    ("Pantry", "Tea", ("earl grey", "assam", "sencha", "rooibos", "peppermint"), ("50g", "100g")),
    ("Pantry", "Olive oil", ("mild", "peppery"), ("250ml", "500ml", "1l")),
    ("Pantry", "Pasta", ("linguine", "penne", "fusilli", "orzo"), ("500g", "1kg")),
    ("Pantry", "Rice", ("basmati", "arborio", "brown"), ("500g", "1kg")),
    ("Pantry", "Honey", ("wildflower", "heather", "chestnut"), ("350g",)),
    ("Pantry", "Chocolate", ("dark 70", "milk", "hazelnut", "orange"), ("100g",)),
    ("Pantry", "Jam", ("apricot", "damson", "blackcurrant", "quince"), ("340g",)),
    ("Pantry", "Sea salt", ("fine", "flaked", "smoked"), ("250g",)),
    ("Pantry", "Oat biscuits", ("plain", "ginger", "raisin"), ("200g",)),
    ("Table", "Stoneware mug", ("sea blue", "sand", "moss", "slate", "chalk"), ("300ml", "400ml")),
    ("Table", "Dinner plate", ("sea blue", "sand", "moss", "chalk"), ("22cm", "27cm")),
    ("Table", "Soup bowl", ("sea blue", "sand", "moss", "chalk"), ("16cm",)),
    ("Table", "Water glass", ("clear", "smoke", "amber"), ("250ml", "400ml")),
    ("Table", "Linen napkin", ("flax", "indigo", "rust", "olive"), ("set of 4",)),
    ("Table", "Teapot", ("cast iron", "glass", "stoneware"), ("600ml", "1l")),
    ("Cook", "Saucepan", ("steel", "copper"), ("1l", "2l", "3l")),
    ("Cook", "Skillet", ("cast iron", "carbon steel"), ("20cm", "26cm", "30cm")),
    ("Cook", "Knife", ("paring", "chef's", "bread", "santoku"), ("12cm", "20cm")),
    ("Cook", "Cutting board", ("oak", "beech", "walnut"), ("small", "large")),
    ("Cook", "Storage jar", ("clip top", "cork top", "screw top"), ("500ml", "1l", "2l")),
    ("Cook", "Wooden spoon", ("olive", "beech", "cherry"), ("25cm", "30cm")),
    ("Cook", "Mixing bowl", ("steel", "glass", "stoneware"), ("1l", "2l", "4l")),
    ("Bake", "Cake tin", ("round", "square", "loaf"), ("20cm", "26cm")),
    ("Bake", "Flour", ("plain", "strong white", "rye", "spelt"), ("1kg", "2kg")),
    ("Bake", "Baking tray", ("flat", "rimmed"), ("medium", "large")),
    ("Brew", "Filter papers", ("no. 2", "no. 4", "cone"), ("pack of 100",)),
    ("Brew", "French press", ("steel", "glass"), ("350ml", "600ml", "1l")),
    ("Brew", "Kettle", ("gooseneck", "stovetop", "electric"), ("1l", "1.7l")),
    ("Brew", "Coffee grinder", ("hand", "electric"), ("small", "large")),
    ("Home", "Tea towel", ("striped", "checked", "plain"), ("set of 2", "set of 3")),
    ("Home", "Apron", ("flax", "indigo", "black", "olive"), ("one size",)),
    ("Home", "Beeswax candle", ("pillar", "taper", "tea light"), ("small", "large")),
    ("Home", "Lunch box", ("steel", "bamboo lid"), ("600ml", "1l")),
    ("Home", "Water bottle", ("steel", "moss", "sand", "black"), ("500ml", "750ml")),
    ("Home", "Dish brush", ("beech", "bamboo"), ("with two heads",)),
    ("Garden", "Herb seeds", ("basil", "thyme", "coriander", "chives", "dill"), ("packet",)),
    ("Garden", "Plant pot", ("terracotta", "glazed"), ("12cm", "18cm", "24cm")),
    ("Garden", "Watering can", ("steel", "green"), ("2l", "5l")),
    ("Garden", "Pruning shears", ("steel", "short"), ("18cm",)),
)


def assortment(seed: int) -> tuple[Product, ...]:
    """Return the items; the same seed makes the same ones."""
    draw = random.Random(seed)  # noqa: S311 - a shop, not secrets
    named = list(_named())
    ranks = list(range(len(named)))
    draw.shuffle(ranks)
    items = []
    for rank, (sku, title, department) in zip(ranks, named, strict=True):
        popularity = 100 / (1 + rank / POPULAR_RANKS)
        if sku == MISCOUNTED_SKU:
            popularity = BEST_SELLER
        full_units = max(6, round(min(popularity, 120) * draw.uniform(0.4, 1.0)))
        items.append(Product(sku, title, department, round(popularity, 2), full_units))
    items.append(Product(VIRAL_SKU, "Game console, launch edition", "Games", 40.0, 12))
    return tuple(items)


def _named() -> Iterator[tuple[str, str, str]]:
    """Yield the SKU, the title and the department of each."""
    for department, family, kinds, sizes in _FAMILIES:
        for kind, size in product(kinds, sizes):
            words = f"{family} {kind} {size}".lower()
            sku = "-".join("".join(c if c.isalnum() else " " for c in words).split())
            yield sku, f"{family}, {kind}, {size}", department
