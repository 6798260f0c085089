"""Fixtures of the tests that run on real stores."""

from collections.abc import AsyncIterator

import pytest

from tests.gateways import Api, Shelf
from tests.shop import Shop, open_shop
from tests.stores import RealStore


@pytest.fixture
async def api(store: RealStore, merchant: str) -> AsyncIterator[Api]:
    """A gateway in this process, on the shared store of each kind in turn."""
    async with Api(store.settings, merchant) as made:
        yield made


@pytest.fixture
async def shelf(api: Api) -> Shelf:
    """A location of the test's own merchant, asked with an admin key."""
    return Shelf(await api.client(), api.merchant)


@pytest.fixture
async def other_shop(store: RealStore, merchant: str) -> AsyncIterator[Shop]:
    """Another process's view of the same merchant on the shared store."""
    async with open_shop(store.settings, merchant) as opened:
        yield opened


@pytest.fixture
async def own_api(own_store: RealStore) -> AsyncIterator[Api]:
    """A gateway over a store of the test's own."""
    async with Api(own_store.settings, "acme") as made:
        yield made


@pytest.fixture
async def own_shelf(own_api: Api) -> Shelf:
    """A location there, asked with an admin key."""
    return Shelf(await own_api.client(), "acme")
