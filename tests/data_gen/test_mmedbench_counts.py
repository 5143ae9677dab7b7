"""The published files give the published numbers of MMedBench; of test splits nothing but the number is looked at."""

import json

import pytest

from data_gen.commands.build import main
from data_gen.sets.mmedbench_card import published_counts

# Where the files of a source lie that are at hand, and what they hold.
HELD = {
    "medqa_us": ("medqa_us", ("test",)),
    "medqa_zh": ("medqa_zh", ("test",)),
    "frenchmedmcqa": ("frenchmedmcqa_fr", ("train", "test")),
    "rumeddanet": ("rumeddanet_ru", ("train", "test")),
    "headqa": ("headqa_es_en", ("train", "test")),
}


def test_counts_are_the_published_ones(tmp_path, shared_dir):
    if not (shared_dir / "data_test").is_dir():
        pytest.skip("the published test splits are not here")
    entries = []
    for name, (folder, splits) in HELD.items():
        (tmp_path / "raw" / name).mkdir(parents=True)
        for part in ("data", "data_test")[2 - len(splits) :]:
            for file in (shared_dir / part / folder).glob("*.json*"):
                if file.name != "PROVENANCE.json":
                    (tmp_path / "raw" / name / file.name).symlink_to(file)
        entries += [name if split == "train" else f"{name}_test" for split in splits]
    flags = ("--recipe.steps=", f"--recipe.sources={','.join(entries)}", "--recipe.near_duplicates=0")
    out = tmp_path / "out"
    main(["--recipe=mmedbench", f"--data_dir={tmp_path / 'raw'}", f"--output={out}", "--model=none", *flags])
    rows = json.loads((out / "build.json").read_text())["rows"]
    known = {f"{split}/{code}": n for (split, code), n in published_counts().items() if f"{split}/{code}" in rows}
    assert rows == known and len(rows) == 8


def test_published_totals():
    """45,048 and 8,518, by the card of the set."""
    six = {cell: n for cell, n in published_counts().items() if cell[1] != "ko"}
    assert sum(n for (split, _), n in six.items() if split == "train") == 45_048
    assert sum(n for (split, _), n in six.items() if split == "test") == 8_518
