import pytest

from tests.support.fake_gcs import fake_cloud


@pytest.fixture(scope="module")
def server():
    with fake_cloud("bucket", "other") as server:
        yield server


@pytest.fixture
def cloud(server):
    yield server
    server.heal()
