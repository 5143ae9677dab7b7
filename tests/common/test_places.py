"""A user's text becomes a path or a place in a bucket, or an error that names the flag."""

import subprocess
import sys
from pathlib import Path

import pytest

from mmed_jax.common.errors import UserError
from mmed_jax.common.paths import expand_home
from mmed_jax.common.places import is_bucket, parse_place, split_bucket


def test_paths_stay_what_they_were(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    for text, path in {
        "a/b": Path("a/b"),
        "~/x": Path("/home/me/x"),
        "a:b": Path("a:b"),
        "lr=1e-5:x//y": Path("lr=1e-5:x/y"),
        "": Path(),
        "./gs:/b": Path("gs:/b"),
    }.items():
        place = parse_place(text)
        assert place == path and type(place) is type(Path()) and not is_bucket(place)


def test_a_bucket_keeps_both_slashes():
    place = parse_place("gs://my-bucket/runs/stage 1/")
    assert str(place) == "gs://my-bucket/runs/stage 1" and str(place / "a") == "gs://my-bucket/runs/stage 1/a"
    assert is_bucket(place) and is_bucket(str(place)) and parse_place(place) is place
    assert split_bucket(place / "a") == ("my-bucket", "runs/stage 1/a") and split_bucket("gs://b-b") == ("b-b", "")
    assert place.name == "stage 1" and is_bucket(place.parent) and is_bucket(parse_place("gs://bucket"))


@pytest.mark.parametrize(
    "text, problem",
    {
        "s3://b/x": "places of s3:// are not supported; name a path, or gs://BUCKET/...",
        "https://storage.googleapis.com/b/x": "places of https:// are not supported",
        "file:///tmp/x": "places of file:// are not supported",
        "gcs://b/x": "did you mean 'gs'?",
        "GS://bucket/x": "places of GS:// are not supported",
        "gs:/bucket/x": "a bucket is written with two slashes, gs://bucket/x",
        "gs:bucket/x": "a bucket is written with two slashes, gs://bucket/x",
        "gs:///x": "name a bucket, gs://BUCKET/...",
        "gs://": "name a bucket",
        "gs://B_ucket/x": "name a bucket, gs://BUCKET/...; its name is 3 to 222 of a-z 0-9",
        "gs://bucket/a//b": "no empty part",
        "gs://bucket/a/../b": "no . or ..",
        "gs://bucket/a[1]": "none of # [ ] * ?",
    }.items(),
    ids=lambda x: None,
)
def test_others_are_refused_in_one_line(text, problem):
    with pytest.raises(UserError) as e:
        parse_place(text, "--output")
    assert str(e.value).startswith(f"--output={text}: ") and problem in str(e.value)
    with pytest.raises(UserError, match="^" + text.split("/")[0]):
        parse_place(text)


def test_a_path_imports_nothing_of_google_and_without_the_extra_it_is_said():
    program = """
import sys
from mmed_jax.common.places import parse_place
from mmed_jax.common.buckets import bucket
parse_place("a/b")
heavy = [m for m in sys.modules if m.startswith(("google", "gcsfs", "fsspec", "etils", "requests"))]
sys.modules["gcsfs"] = None
try:
    parse_place("gs://bucket/a", "--model")
except Exception as e:
    print(heavy, e)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    line = "--model=gs://bucket/a: needs the libraries of Google Cloud Storage: pip install 'mmed_jax[gcs]'"
    assert done.stdout.startswith(f"[] {line}")


@pytest.mark.parametrize("path", ["gs://bucket/x", "gs:/bucket/x", Path("gs://bucket/x")])
def test_a_path_never_makes_a_folder_of_an_address(path):
    with pytest.raises(UserError, match="^gs:/+bucket/x: is no place in a bucket"):
        expand_home(path)
