"""The bench of the property tests; how hard they look is in tests/conftest.py."""

import asyncio
from collections.abc import Iterator

import pytest

from engine import definitions, sold_out
from tests.property.bench import Bench
from tests.stores import RealStore


@pytest.fixture(scope="module")
def bench(store_kind: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    """A bench on each kind of server in turn, apart from the store that other tests share.

    Nothing is refused from memory here: the tests move the store's clock by hours within the
    milliseconds for which a refusal is believed.
    """
    with asyncio.Runner() as runner, pytest.MonkeyPatch.context() as patch:
        patch.setattr(sold_out, "BELIEF_SECONDS", 0.0)
        # A call that has to ask for the kits again would fall behind those that came with it.
        patch.setattr(definitions, "CACHE_SECONDS", 3_600.0)
        made = Bench(runner, RealStore(store_kind, tmp_path_factory.mktemp("property") / "data"))
        yield made
        made.close()
