"""Fixtures of the tests that run on real stores."""

from collections.abc import AsyncIterator

import pytest

from tests.gateways import Api, Shelf
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
