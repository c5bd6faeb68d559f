from pathlib import Path

import pytest
from hypothesis import settings
from obstore.store import LocalStore, MemoryStore
from registry import ObjectStorage

from registry_routes.registry import MemoryStorage, Storage

# On a busy machine the time of one example says nothing.
settings.register_profile("registry_routes", deadline=None)
settings.load_profile("registry_routes")


@pytest.fixture(params=["memory", "directory", "object store"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    """An empty storage of each kind. The object store is one of obstore's, in this process."""
    if request.param == "memory":
        return MemoryStorage()
    return ObjectStorage(MemoryStore() if request.param == "object store" else LocalStore(tmp_path))
