"""Fixtures: an empty stand-in for Google Cloud Storage that answers at an address of this machine."""

from collections.abc import Iterator

import pytest

from vit_core.storage.object_store import _client
from vit_core.storage.tests.fake_gcs import Store, serving


@pytest.fixture(scope="session")
def gcs_server() -> Iterator[Store]:
    """One for all tests: TensorStore reads the address once in a process."""
    with serving() as store, pytest.MonkeyPatch.context() as patch:
        for name, value in store.environment.items():
            patch.setenv(name, value)
        _client.cache_clear()
        yield store
    _client.cache_clear()


@pytest.fixture
def store(gcs_server: Store) -> Iterator[Store]:
    """The server with an empty bucket `bucket`; it answers every request."""
    gcs_server.buckets["bucket"].clear()
    gcs_server.log.clear()
    yield gcs_server
    gcs_server.before, gcs_server.refuse = lambda verb, name: None, 0
