"""Every flag and config key that takes a path: unknown schemes are one line, gs:// works or is refused in one line."""

import argparse
import importlib

import pytest

from data_gen.commands.command_list import COMMANDS, find_command
from mmed_jax.common.command_line import Parser
from mmed_jax.common.errors import UserError, one_line
from mmed_jax.common.place_flags import FreeText, OutputPlace, addresses
from mmed_jax.config.checks import validate
from mmed_jax.config.defaults import KEYS
from mmed_jax.config.overrides import set_override, split_overrides
from mmed_jax.config.recipes import load_config

BAD = ("s3://b/x", "http://host/x", "gs:/b/x", "gs:b/x", "hf://org/name", "gs://", "NAME=s3://b/x", "a,s3://b/x")
LINES = {
    "train": ["--config=stage1"],
    "plan": ["--config=stage1"],
    "evaluate": ["--model=x"],
    "evaluate api": ["--api_model=x"],
    "evaluate list": ["list"],
    "generate": [],
    "export": [],
    "merge": [],
    "audit": [],
    "inspect": ["--config=stage1"],
    "inspect table": ["--table=x"],
    "inspect adapter": ["--adapter=x"],
    "rate sheet": ["sheet"],
    "rate judge": ["judge"],
    "rate correlate": ["correlate"],
    "report": [],
    "study": [],
    "compare": [],
    "doctor": [],
    "data_gen corpus build": ["build"],
    "data_gen corpus tokenize": ["tokenize"],
    "data_gen check sheet": ["sheet"],
    "data_gen check read": ["read"],
    **{f"data_gen {name}": [] for name in COMMANDS if name not in ("corpus", "check", "estimate")},
}
FREE = {"--prompt", "--system", "--base_url", "--params", "--license", "--gguf_pre", "--sbatch", "--sbatch_train"}
# Flags that take gs:// (those of whole commands as "COMMAND --flag"), in docs/pods.md.
RUN_DIR = {"report --run", "doctor --run_dir"}
ANYWHERE = {"--model", "--adapter", "--base", "--data", "--data_dir", "--perplexity", "--few_shot_data", "--input"}
ANYWHERE |= {"--output", "--rejects", "--json", "--table", "--runs", "--ratings", "--submission", "--bertscore_model"}
ANYWHERE |= {"--results", "--benchmarks", "--ours", "--theirs", "--earlier", "--tokenizer", "RUN", "--models"}
ANYWHERE |= {"--baseline", "--sheets"}


class Captured(Exception):
    pass


def parser_of(name: str, monkeypatch) -> Parser:
    """The parser that a command line comes to, with nothing required."""
    room, *_ = name.split()
    if room == "data_gen":
        main = find_command(name.split()[1]).main
    else:
        main = importlib.import_module(f"mmed_jax.{room}").main

    def capture(self, *_):
        raise Captured(self)

    with monkeypatch.context() as patch, pytest.raises(Captured) as e:
        patch.setattr(Parser, "parse_known_args", capture)
        main(LINES[name])
    parser = e.value.args[0]
    for action in parser._actions:
        action.required = False
        action.nargs = "*" if action.nargs == "+" else action.nargs
    return parser


def outcome(parser: Parser, action: argparse.Action, text: str) -> str:
    """ "" when the parser takes the text, else its one line."""
    flag = action.option_strings[-1] if action.option_strings else ""
    try:
        parser.parse_known_args([f"{flag}={text}" if flag else text])
    except UserError as e:
        assert "\n" not in one_line(e)
        return str(e)
    return ""


@pytest.mark.parametrize("name", LINES)
def test_each_flag_of_a_command(name, monkeypatch, tmp_path):
    """Whatever is not declared a place is refused: a new flag can't make a folder called gs:."""
    monkeypatch.chdir(tmp_path)
    parser, takes = parser_of(name, monkeypatch), set()
    for action in parser._actions:
        if action.nargs == 0 or action.choices or action.type in (int, float):
            continue
        flag = action.option_strings[-1] if action.option_strings else action.metavar
        if action.type is FreeText:
            assert flag in FREE
            continue
        if not isinstance(action.type, type) and action.type is not None:  # a list of names
            continue
        is_one = action.type is not None and issubclass(action.type, OutputPlace)  # no list, and no NAME=
        for text in BAD[:6] if is_one else BAD:
            line = outcome(parser, action, text)
            bad = addresses(text)[0] if text != "gs://" else text
            assert bad in line and flag in line, (flag, text, line)
        line = outcome(parser, action, "gs://bucket/x")
        if not line:
            takes.add(flag)
        else:
            assert line.startswith(f"{flag}=gs://bucket/x: is no place in a bucket"), line
    assert takes - ANYWHERE <= {f.split()[-1] for f in RUN_DIR if f.startswith(name)}
    # No path is forgotten: what names a file or folder is one of these, or is refused.
    if name.split()[0] in ("evaluate", "generate", "export", "merge", "compare", "rate"):
        paths = {a.option_strings[-1] for a in parser._actions if a.metavar in ("DIR", "FILE", "FILE.jsonl")}
        assert paths - takes <= {"--ledger", "--prices"}
    assert list(tmp_path.iterdir()) == []


def test_each_config_key():
    free = {"name", "variant", "data.system_prompt", "wandb", "xla_flags", "distributed.coordinator", "model.preset"}
    free |= {"model.ignore_keys", "data.languages", "lora.layers"}
    for name, key in KEYS.items():
        if not isinstance(key.default, str | tuple) or key.choices or name in free:
            continue
        assert key.place is not None, name
        for text in BAD[:5]:
            config = load_config("stage1:demo")
            set_override(config, name, text)
            with pytest.raises(UserError, match=f"^config.{name}={text}: "):
                validate(config)


def test_a_recipe_key_takes_no_bucket():
    with pytest.raises(UserError, match="^--recipe.lists=gs://b-b/x: is no place in a bucket"):
        split_overrides(["--recipe.lists=gs://bbb/x".replace("bbb", "b-b")], "--recipe")
    assert split_overrides(["--ray.address=ray://head:10001"], "--ray")[1] == {"address": "ray://head:10001"}


def test_addresses_are_found_in_lists():
    assert addresses("a=gs://b/x,c=gs://b/y+gs://b/z") == ["gs://b/x", "gs://b/y", "gs://b/z"]
    assert addresses("gs://b/a.jsonl:train, b") == ["gs://b/a.jsonl:train"]
    assert addresses("C:/x,a/b:/c") == [] and addresses("a=gs://b", OutputPlace) == []
