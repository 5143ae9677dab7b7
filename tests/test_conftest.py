"""The flags that tests hand to XLA: one that it does not have would end every test process without a word."""

import pytest

from tests.conftest import xla_knows


@pytest.mark.parametrize("flag", ["xla_force_host_platform_device_count", "xla_backend_optimization_level"])
def test_flags_of_xla_are_known(flag):
    assert xla_knows(flag)


# The start and the end of such a name stand in XLA as well, within other text.
@pytest.mark.parametrize("name", ["xla_backend_optimization_lev", "backend_optimization_level", "xla_no_such_flag"])
def test_text_within_xla_is_no_flag(name):
    assert not xla_knows(name)
