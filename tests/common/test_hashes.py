"""Names for contents: the same whatever the order of keys, and the same as ever, for they lie in files."""

import hashlib

import pytest

from mmed_jax.common.errors import UserError
from mmed_jax.common.hashes import file_hash, json_hash


def test_hash_of_a_value():
    assert json_hash({"b": 1, "a": ["é", (1, 2)]}, 16) == json_hash({"a": ["é", [1, 2]], "b": 1}, 16)
    assert (
        json_hash({"b": 1, "a": ["é", 2.5]}, 20)
        == hashlib.sha256('{"a": ["é", 2.5], "b": 1}'.encode()).hexdigest()[:20]
    )
    with pytest.raises(TypeError):
        json_hash({"a": {1}}, 16)
    assert json_hash({"a": {1}}, 16, default=list) == json_hash({"a": [1]}, 16)


def test_hash_of_a_file(tmp_path):
    (tmp_path / "a").write_bytes(b"abc" * 100_000)
    assert file_hash(tmp_path / "a") == hashlib.sha256(b"abc" * 100_000).hexdigest()
    with pytest.raises(UserError, match="is a folder"):
        file_hash(tmp_path)
