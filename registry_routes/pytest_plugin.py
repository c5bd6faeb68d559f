"""The pytest plugin: the fixture ``oci_registry``.

pytest loads it in every suite whose environment has the package, so it imports the rest only when
a test uses the fixture.
"""

from collections.abc import Generator, Iterator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from .testing import ServedRegistry

__all__ = ["oci_registry"]


_passed = pytest.StashKey[bool]()


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, Any, None]:
    outcome = yield
    if call.when == "call":
        item.stash[_passed] = outcome.get_result().passed


@pytest.fixture
def oci_registry(request: pytest.FixtureRequest) -> Iterator["ServedRegistry"]:
    """A container registry, empty and in memory, on its own port until the test ends.

    A test that would pass fails if requests never met some of its planned faults.

    See `registry_routes.testing.ServedRegistry`.
    """
    from .testing import serve

    with serve() as registry:
        yield registry
        if registry.unfired and request.node.stash.get(_passed, False):
            faults = "".join(f"\n  {fault}" for fault in registry.unfired)
            pytest.fail(f"no request has met these faults:{faults}", pytrace=False)
