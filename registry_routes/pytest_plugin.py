"""The pytest plugin: the fixture ``oci_registry``.

pytest loads it in every suite whose environment has the package, so it imports the rest only when
a test uses the fixture.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from .testing import ServedRegistry


@pytest.fixture
def oci_registry() -> Iterator["ServedRegistry"]:
    """A container registry, empty and in memory, on its own port until the test ends.

    See `registry_routes.testing.ServedRegistry`.
    """
    from .testing import serve

    with serve() as registry:
        yield registry
