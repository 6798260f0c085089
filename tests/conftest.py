"""Fixtures that every test may use: real stores, a cluster, a merchant of one's own."""

import asyncio
import os
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path
from uuid import uuid4

import pytest
from hypothesis import HealthCheck, Phase, settings

from engine.store import Client, close_quietly, connect
from tests.shop import Shop, open_shop
from tests.stores import (
    KINDS,
    REDIS7,
    VALKEY,
    MakeStore,
    MissingServer,
    RealCluster,
    RealStore,
    server_of,
    set_up,
)

REQUIRE_REDIS7 = "HOLDFAST_REQUIRE_REDIS7"
"""Set where a Redis 7 must be there, so that a test that misses it fails and is not skipped."""


PROFILE = "HOLDFAST_TEST_PROFILE"
"""How hard the property tests look: quick by default, longer where it says `ci`.

The quick ones take the same examples each time, so that a change is what turns them red; the longer
ones look for new ones. A failure prints the blob that repeats it.
"""

_slow_store = [HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
settings.register_profile(
    "quick",
    max_examples=35,
    stateful_step_count=30,
    deadline=None,
    derandomize=True,
    print_blob=True,
    # Explaining a failure repeats it so often, on a real store, that it takes minutes.
    phases=[phase for phase in Phase if phase is not Phase.explain],
    suppress_health_check=_slow_store,
)
settings.register_profile(
    "ci",
    settings.get_profile("quick"),
    max_examples=150,
    stateful_step_count=50,
    derandomize=False,
)
settings.load_profile(os.environ.get(PROFILE, "quick"))


MOST_WORKERS = 2
"""Processes that share the tests. Most tests wait for a server rather than compute, but what they
start wants a processor too."""


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Share the tests where all of them run; a file or two is sooner done in this process."""
    whole = config.args_source is not pytest.Config.ArgsSource.ARGS
    return min(MOST_WORKERS, os.cpu_count() or 1) if whole else 0


def need(kind: str) -> None:
    """Skip the test where this machine has no server of the kind, or fail where it must have."""
    try:
        server_of(kind)
    except MissingServer as error:
        if kind == REDIS7 and not os.environ.get(REQUIRE_REDIS7):
            pytest.skip(f"no Redis 7: {error}")
        pytest.fail(f"no {kind}: {error}")


@pytest.fixture(scope="session", params=KINDS)
def store_kind(request: pytest.FixtureRequest) -> str:
    """Each kind of server in turn; a test that asks for it runs once on each."""
    kind = str(request.param)
    need(kind)
    return kind


@pytest.fixture(scope="session")
def store(store_kind: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealStore]:
    """A store that all tests of a kind share, ready for use. Do not kill or empty it."""
    real = RealStore(store_kind, tmp_path_factory.mktemp(store_kind) / "data")
    asyncio.run(real.start())
    asyncio.run(set_up(real.settings))
    yield real
    asyncio.run(real.stop())


@pytest.fixture
async def client(store: RealStore) -> AsyncIterator[Client]:
    """A client of the shared store, as the product connects."""
    made = connect(store.settings)
    yield made
    await close_quietly(made)


@pytest.fixture
async def make_store(tmp_path: Path) -> AsyncIterator[MakeStore]:
    """Make stores that a test may kill, damage or fill: `make_store(kind, ...)`, then start it."""
    made: list[RealStore] = []

    def make(
        kind: str = VALKEY, *, tcp_port: int | None = None, extra_config: Sequence[str] = ()
    ) -> RealStore:
        need(kind)
        real = RealStore(
            kind, tmp_path / f"store-{len(made)}", tcp_port=tcp_port, extra_config=extra_config
        )
        made.append(real)
        return real

    yield make
    for real in made:
        await real.stop()


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealCluster]:
    """A three-node cluster that all tests share, ready for use. Do not kill its nodes."""
    real = RealCluster(tmp_path_factory.mktemp("cluster"))
    asyncio.run(real.start())
    asyncio.run(set_up(real.settings))
    yield real
    asyncio.run(real.stop())


@pytest.fixture
def merchant() -> str:
    """A merchant that no other test uses."""
    return f"m-{uuid4().hex[:12]}"


@pytest.fixture
async def shop(store: RealStore, merchant: str) -> AsyncIterator[Shop]:
    """A merchant's shop on the shared store of each kind in turn."""
    async with open_shop(store.settings, merchant) as opened:
        yield opened


@pytest.fixture
async def own_store(store_kind: str, make_store: MakeStore) -> RealStore:
    """A store of each kind with one partition, for this test alone."""
    own = make_store(store_kind)
    await own.start()
    await set_up(own.settings, partitions=1)
    return own


@pytest.fixture
async def own_shop(own_store: RealStore) -> AsyncIterator[Shop]:
    """A shop on a store of its own with one partition, whose clock and keys the test may touch."""
    async with open_shop(own_store.settings) as opened:
        yield opened
