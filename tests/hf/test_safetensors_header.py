"""Headers of safetensors files: whatever the library refuses is refused here, and the rest gives the same tensors."""

import json
import os
import random
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors

from mmed_jax.common.errors import UserError
from mmed_jax.hf.safetensors import BITS, read_header

GOOD = {
    "__metadata__": {"format": "pt"},
    "a": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]},
    "b": {"dtype": "BF16", "shape": [4], "data_offsets": [24, 32]},
    "c": {"dtype": "F16", "shape": [1, 4], "data_offsets": [32, 40]},
}
# Accepted by the library, refused here, and why.
STRICTER = ("is given twice", "must be an object", "is unknown")


def packed(header: str | bytes | dict, data: int = 40, length: int | None = None) -> bytes:
    """A file of this header and so many bytes after it; `length` = what its first 8 bytes say."""
    text = json.dumps(header) if isinstance(header, dict) else header
    text = text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text
    return (len(text) if length is None else length).to_bytes(8, "little") + text + b"\x01" * data


def theirs(data: bytes) -> dict | None:
    try:
        return {name: (t["dtype"], tuple(t["shape"]), len(t["data"])) for name, t in safetensors.deserialize(data)}
    except Exception:  # its error type, and OverflowError
        return None


def compare(data: bytes, file: Path) -> bool | None:
    """Asserts that both say the same of a file; returns whether it was accepted, None where ours is stricter."""
    file.write_bytes(data)
    expected = theirs(data)
    try:
        found = {name: (t.dtype, t.shape, t.end - t.begin) for name, t in read_header(file).items()}
    except UserError as e:
        message = str(e)
        assert str(file) in message and "\n" not in message and len(message) < 600
        if expected is not None:
            assert any(reason in message for reason in STRICTER), (data, message)
            return None
        return False
    assert found == expected, data
    return True


NUMBERS = (
    0,
    1,
    2,
    3,
    4,
    24,
    25,
    32,
    40,
    41,
    -1,
    2**31,
    2**32,
    2**63,
    2**64 - 1,
    2**64,
    10**30,
    1.0,
    24.0,
    0.5,
    True,
    False,
    None,
    "24",
    [24],
    {},
)
TEXTS = (*BITS, "F32 ", "f32", "F128", "", None, 3, ["F32"], {"F32": None})


def altered(rng: random.Random) -> bytes:
    """The good file with one to three things changed at random."""
    header = json.loads(json.dumps(GOOD))
    size, text = 40, None
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        name = rng.choice(("a", "b", "c"))
        entry = header.get(name)
        kind = rng.randrange(11)
        if not isinstance(entry, dict) or kind == 0:
            header[name] = rng.choice((None, [], ["F32", [2, 3], [0, 24]], 7, "x", {}))
        elif kind == 1:
            entry["dtype"] = rng.choice(TEXTS)
        elif kind in (2, 3) and isinstance(entry.get("data_offsets"), list) and entry["data_offsets"]:
            entry["data_offsets"][rng.randrange(len(entry["data_offsets"]))] = rng.choice(NUMBERS)
        elif kind == 4 and isinstance(entry.get("shape"), list) and entry["shape"]:
            entry["shape"][rng.randrange(len(entry["shape"]))] = rng.choice(NUMBERS)
        elif kind == 5:
            entry["shape"] = rng.choice(([], [0], [6], [3, 2], [24], [2**40, 0, 2**40], [0, 2**64], "6", None, [[6]]))
        elif kind == 6:
            entry.pop(rng.choice(list(entry)), None) if entry else None
        elif kind == 7:
            header["__metadata__"] = rng.choice((None, {}, {"a": "b"}, {"a": 1}, [], "x", {"a": {"b": "c"}}))
        elif kind == 8:
            entry[rng.choice(("note", "strides", "é"))] = rng.choice((1, None, [[]], {"x": -1}, "\u2028"))
        elif kind == 9:
            header[rng.choice(("", "d", "a/b", "\x1b[2J"))] = json.loads(json.dumps(header.get(rng.choice("abc"))))
        else:
            size += rng.choice((-40, -1, 1, 8))
    text = json.dumps(header, ensure_ascii=rng.random() < 0.5)
    if rng.random() < 0.2:
        at = rng.randrange(len(text))
        text = rng.choice(
            (
                text[:at],
                text + " " * 7,
                text + "x",
                " " + text,
                text[:at] + rng.choice('"{}[],:0-e\\\t\0') + text[at:],
                text.replace("24", "-0"),
                text.replace("[", "[ -0, ", 1),
            )
        )
    length = None if rng.random() < 0.95 else rng.choice((0, 1, 7, len(text) + 1, len(text) - 1, 2**40, 2**64 - 1))
    return packed(text, max(size, 0), length)


def test_thousands_of_altered_headers(tmp_path):
    rng = random.Random(7)
    counts = {True: 0, False: 0, None: 0}
    assert compare(packed(GOOD), tmp_path / "x.safetensors")
    for _ in range(3000):
        counts[compare(altered(rng), tmp_path / "x.safetensors")] += 1
    assert counts[True] > 100 and counts[False] > 1000, counts


ENTRY = '{"dtype":"F32","shape":[2,3],"data_offsets":[0,24]}'
HEADERS = {
    "empty": packed("{}", 0),
    "no tensors, bytes left": packed("{}", 8),
    "no header": b"",
    "seven bytes": b"\x00" * 7,
    "not JSON": packed("x" * 64),
    "a list": packed("[]", 0),
    "a byte-order mark": packed("\ufeff" + json.dumps(GOOD)),
    "UTF-16": packed(json.dumps(GOOD).encode("utf-16")),
    "not UTF-8": packed(b'{"\xff":' + ENTRY.encode() + b"}", 24),
    "half a surrogate pair": packed(f'{{"\\ud800":{ENTRY}}}', 24),
    "NaN": packed(f'{{"a":{ENTRY},"b":NaN}}', 24),
    "deep": packed('{"a":' + "[" * 100_000 + "]" * 100_000 + "}", 24),
    "deep in an entry": packed('{{"a":{{"x":{},{}}}'.format("[" * 500 + "]" * 500, ENTRY[1:]), 24),
    "long number": packed('{"a":{"dtype":"F32","shape":[%s],"data_offsets":[0,24]}}' % ("9" * 5000), 24),
    "twice the same offsets": packed({"a": GOOD["a"], "b": GOOD["a"]}, 24),
    "twice the same name": packed(f'{{"a":{ENTRY},"a":{ENTRY}}}', 24),
    "twice the same field": packed(f'{{"a":{{"dtype":"F32",{ENTRY[1:]}}}', 24),
    "minus zero": packed((f'{{"a":{ENTRY}}}').replace("[0,", "[-0,"), 24),
    "exponent": packed((f'{{"a":{ENTRY}}}').replace("[2,3]", "[6e0]"), 24),
    "a gap": packed({"a": GOOD["a"], "c": GOOD["c"]}),
    "does not begin at 0": packed({"b": GOOD["b"]}, 32),
    "empty tensors between": packed(
        {"a": GOOD["a"], "z": {"dtype": "F32", "shape": [0], "data_offsets": [24, 24]}, "b": GOOD["b"]}, 32
    ),
    "half a byte": packed({"a": {"dtype": "F4", "shape": [3], "data_offsets": [0, 1]}}, 1),
    "too many values": packed({"a": {"dtype": "F32", "shape": [2**32, 2**32], "data_offsets": [0, 0]}}, 0),
}


@pytest.mark.parametrize("name", HEADERS)
def test_header(name, tmp_path):
    compare(HEADERS[name], tmp_path / "x.safetensors")


def test_every_dtype_of_the_library(tmp_path):
    for code, bits in {**BITS, "F128": 128, "I4": 4, "F6": 6, "C128": 128}.items():
        data = packed({"a": {"dtype": code, "shape": [8], "data_offsets": [0, bits]}}, bits)
        assert compare(data, tmp_path / "x.safetensors") is (code in BITS)


def test_what_is_no_file_is_said_and_not_opened(tmp_path):
    """A pipe or /dev/zero would be read for ever; in a process of its own, which is killed when it hangs."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "zero").symlink_to("/dev/zero")
    (tmp_path / "gone").symlink_to(tmp_path / "nowhere")
    (tmp_path / "folder").mkdir()
    with socket.socket(socket.AF_UNIX) as s:
        s.bind(str(tmp_path / "socket"))
    code = """if True:
        import sys
        from pathlib import Path
        from mmed_jax.common.errors import UserError
        from mmed_jax.hf.load import read_json
        from mmed_jax.hf.safetensors import read_header
        from mmed_jax.data.records.reading import read_records
        readers = [read_header, read_json, lambda p: list(read_records(p))]
        for name in sys.argv[1:]:
            for read in readers[: 2 if name.endswith("folder") else 3]:
                try:
                    read(Path(name))
                except UserError as e:
                    print(e)
    """
    names = [str(tmp_path / n) for n in ("pipe", "zero", "gone", "folder", "socket")]
    run = subprocess.run([sys.executable, "-c", code, *names], capture_output=True, text=True, timeout=60, check=True)
    lines = run.stdout.splitlines()
    assert len(lines) == 14, run.stdout + run.stderr
    for name, what in (
        ("pipe", "a named pipe"),
        ("zero", "a link to a device"),
        ("gone", "which is not there"),
        ("folder", "is a folder"),
        ("socket", "a socket"),
    ):
        said = [line for line in lines if str(tmp_path / name) in line.split(": is ")[0]]
        assert len(said) == (2 if name == "folder" else 3) and all(what in line for line in said), lines
