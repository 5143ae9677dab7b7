import pytest

from tests.support.fake_gcs import fake_gcs


@pytest.fixture(scope="module")
def server():
    with fake_gcs("bucket", "other") as server, pytest.MonkeyPatch.context() as patch:
        for name, value in server.environment.items():
            patch.setenv(name, value)
        yield server


@pytest.fixture
def cloud(server):
    yield server
    server.heal()
