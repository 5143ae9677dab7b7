"""A method more costs two new files and no edit: the copy of data_gen here gets them, and everything else follows."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from mmed_jax.data.records.reading import read_records
from tests.support.openai_server import OpenAIServer

FILES = Path(__file__).with_name("new_method")
INTO = {"simplify.py": "methods", "plain_words.toml": "prompts"}
RECIPE = """
from data_gen.sets.recipes import base, source, step
VARIANTS = ("",)
def get_config(variant):
    c = base()
    c.name = "plain"
    c.sources, c.source.faq = ("faq",), source(path="@handcrafted/instructions.jsonl", split="", limit=3)
    c.steps, c.step.plain = ("plain",), step("plain_words", ("faq",), options={"age": 9})
    return c
"""


@pytest.fixture(scope="module")
def python(tmp_path_factory, repo):
    """python(*arguments) runs in a folder whose data_gen has one method more."""
    folder = tmp_path_factory.mktemp("checkout")
    shutil.copytree(repo / "data_gen", folder / "data_gen", ignore=shutil.ignore_patterns("__pycache__"))
    assert sorted(f.name for f in FILES.glob("*.*")) == sorted(INTO)
    for name, room in INTO.items():
        shutil.copy(FILES / name, folder / "data_gen" / room / name)
    environment = {**os.environ, "PYTHONPATH": f"{folder}:{repo}", "OPENAI_API_KEY": "sk-test"}

    def run(*arguments: object) -> str:
        command = [sys.executable, *map(str, arguments)]
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        return done.stdout

    run.folder = folder
    return run


def complete(body: dict) -> str:
    """A model that answers every question."""
    assert "a nurse who explains" in body["messages"][0]["content"]
    return json.dumps({"answer": "The heart pumps the blood through the body, and the lungs give it air."})


def test_a_command_a_step_and_every_list_follow(python):
    assert re.search(r"\n  simplify +answers in plain words\n", python("-m", "data_gen"))
    assert "--age N" in python("-m", "data_gen", "simplify", "--help")
    assert "simplify" in python("-m", "data_gen", "estimate", "--help").splitlines()[0]
    with OpenAIServer(complete) as server:
        run = ["--model=m", f"--base_url={server.base_url}", f"--ledger={python.folder}/l.sqlite"]
        rows = f"--input={python.folder}/data_gen/handcrafted/instructions.jsonl"
        table = python("-m", "data_gen", "simplify", rows, "--output=plain.jsonl", "--only=en", "--limit=4", *run)
        assert "plain_words\n" in table and server.served == 4
        (python.folder / "plain_set.py").write_text(RECIPE)
        recipe = ["--recipe=./plain_set.py", "--recipe.languages=en", "--output=set"]
        assert "plain/plain:\nrows" in python("-m", "data_gen", "build", *recipe, *run, "--dry_run")
    records = list(read_records(python.folder / "plain.jsonl"))
    assert {(r["method"], r["provenance"]["prompt"]) for r in records} == {("plain_words", "plain_words/1")}
    assert [r["id"].endswith("+plain") for r in records] == [True] * 4


def test_the_version_of_its_words_is_pinned_by_the_command(python):
    python("-m", "data_gen.prompts")
    pinned = json.loads((python.folder / "data_gen/prompts/versions.json").read_text(encoding="utf-8"))
    assert "plain_words/1" in pinned
