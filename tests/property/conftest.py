"""How hard the property tests look: quick by default, longer with HOLDFAST_TEST_PROFILE=ci.

The quick ones take the same examples each time, so that a change is what turns them red; the longer
ones look for new ones. A failure prints the blob that repeats it.
"""

import asyncio
import os
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, Phase, settings

from engine import definitions, sold_out
from tests.property.bench import Bench
from tests.stores import RealStore

PROFILE = "HOLDFAST_TEST_PROFILE"

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
