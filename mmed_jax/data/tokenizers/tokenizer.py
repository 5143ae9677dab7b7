"""The tokenizer: of a Hugging Face folder, or a `tokenizer.model` converted; roles and template of its chat format."""

import contextlib
import json
import os
import re
import tempfile
import weakref
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from mmed_jax.common.errors import UserError, one_line, warn
from mmed_jax.common.hashes import json_hash
from mmed_jax.common.input_files import check_file, open_file, what_is
from mmed_jax.common.jsonl import BadJSON, loads
from mmed_jax.common.paths import expand_home
from mmed_jax.data import chat_formats
from mmed_jax.data.chat_formats import SYNTAXES, ChatSyntax, missing, syntax_of, token_id
from mmed_jax.data.tokenizers import ranks_file
from mmed_jax.data.tokenizers.sentencepiece_file import convert, is_sentencepiece
from mmed_jax.data.tokenizers.template_probe import render

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

# Llama-3's names, which other code takes from here.
BOS, EOS, EOT, EOM, PAD = chat_formats.BOS, chat_formats.EOS, chat_formats.EOT, chat_formats.EOM, chat_formats.PAD
START_HEADER, END_HEADER = chat_formats.START_HEADER, chat_formats.END_HEADER
LLAMA3_CHAT_TEMPLATE = chat_formats.LLAMA3.template
SPLIT_PATTERN, NUM_SPECIAL = ranks_file.SPLIT_PATTERN, ranks_file.NUM_SPECIAL
byte_chars, special_token_names = ranks_file.byte_chars, ranks_file.special_token_names

# Of a Hugging Face tokenizer, as transformers looks for them.
_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
)
_LARGEST = 256 << 20  # bytes; the largest known tokenizer.json has 35 MB

_LARGEST_ID = 1 << 24  # eighty times the largest known vocabulary; room is made for every id up to the last

_PROBE = [{"role": r, "content": f" {r} text "} for r in ("system", "user", "assistant", "user")]
_PLAIN: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()  # tokenizer -> what _plain_encoder gives
_TOLD: weakref.WeakSet = weakref.WeakSet()  # tokenizers of which unknown characters were told

# Folders of the default paths; no account of the hub's.
_OUR_FOLDERS = ("runs", "models", "exports", "records", "results")


def local_path(path: str | os.PathLike, what: str) -> Path:
    """`path` as an existing file or folder; UserError otherwise, with the download command when it is a hub name."""
    found = expand_home(path)
    if found.exists():
        return found
    owner, _, name = str(path).partition("/")
    if owner == "models" and re.fullmatch(r"(Meta-)?Llama-3[\w.-]*", name):  # a folder that configs/hardware.py names
        raise UserError(
            f"{what}: no folder '{path}': accept the licence of meta-llama/{name} on huggingface.co and run "
            f"`hf download meta-llama/{name} --local-dir {path}`"
        )
    check_file(found, f"{what}: {path}")  # a link to nowhere
    is_hub_name = re.fullmatch(r"[A-Za-z0-9][\w.-]*/[\w.-]+", str(path)) and owner not in _OUR_FOLDERS
    if is_hub_name and not found.parent.exists():
        raise UserError(
            f"{what}: no folder '{path}', and nothing is fetched from the hub here. If it is a hub name: accept its "
            f"licence on huggingface.co, run `hf download {path} --local-dir DIR` and give DIR"
        )
    raise UserError(f"{what}: '{path}' does not exist")


def load_tokenizer(path: str | os.PathLike) -> "PreTrainedTokenizerFast":
    """The tokenizer of a Hugging Face folder (`tokenizer.json`) or of a `tokenizer.model`, Meta's or sentencepiece's.

    The class is always PreTrainedTokenizerFast over the folder's `tokenizer.json`: class names in
    `tokenizer_config.json` are often wrong for byte-level vocabularies and would change the ids. Decoding never
    rewrites spaces. A tokenizer with the control tokens of a chat format (formats.syntax_of) gets its template and its
    end token, and a pad token that is no stop token where the vocabulary allows; others stay as they are, for what
    needs no chat format.

    Args:
        path: an HF folder, a `tokenizer.model`, or a folder that holds one (also below `original/`).

    Raises:
        UserError: nothing there, unreadable, a pointer instead of the file, or some control tokens of a format are
            missing.
    """
    path = local_path(path, "tokenizer")
    check_file(path / "tokenizer.json" if path.is_dir() else path)
    if path.is_file():
        tok = _load_hf(path.parent) if path.name == "tokenizer.json" else _load_model_file(path)
    elif (path / "tokenizer.json").is_file():
        tok = _load_hf(path)
    else:
        ranks = next(
            (p for p in (path / "tokenizer.model", path / "original" / "tokenizer.model") if p.is_file()), None
        )
        if ranks is None:
            raise UserError(f"tokenizer: {path} holds neither tokenizer.json nor Meta's tokenizer.model")
        tok = _load_model_file(ranks)
    return _with_format(tok, path)


def tokenizer_hash(tok: "PreTrainedTokenizerFast") -> str:
    """SHA-256 (hex) over vocabulary, merges, splitting, added tokens, special roles and chat template of `tok`."""
    state = backend_json(tok)
    state["roles"] = _roles(tok)
    state["chat_template"] = tok.chat_template
    return json_hash(state, 64)


def encoder_hash(tok: "PreTrainedTokenizerFast") -> str:
    """SHA-256 (hex) over what makes ids of text: vocabulary, merges, splitting, added tokens; no roles, no template."""
    return json_hash({k: v for k, v in backend_json(tok).items() if k != "post_processor"}, 64)


def stop_ids(tok: "PreTrainedTokenizerFast") -> tuple[int, ...]:
    """Ids that end an answer, ascending: those of the chat format (<|eot_id|>, ...) and the tokenizer's end token."""
    syntax = syntax_of(tok)
    names = (syntax.end, *syntax.stops, tok.eos_token) if syntax else (tok.eos_token,)
    return tuple(sorted({token_id(tok, t) for t in names} - {None}))


def control_ids(tok: "PreTrainedTokenizerFast") -> frozenset[int]:
    """Ids that text must never produce: special tokens, named roles, and any added token that looks like `<|...|>`."""
    roles = set(_roles(tok).values())
    return frozenset(
        i for i, t in tok.added_tokens_decoder.items() if t.special or t.content in roles or _looks_control(t.content)
    )


def check_vocab(tok: "PreTrainedTokenizerFast", vocab_size: int) -> None:
    """UserError when `tok` makes ids that a model of `vocab_size` rows has not; one warning line when it is smaller.

    Without a chat format, control tokens behind the model's last row are warned about only: no text becomes one.
    """
    used = max(tok.get_vocab().values()) + 1
    if used > vocab_size:
        beyond = sorted(i for i in tok.get_vocab().values() if i >= vocab_size)
        if syntax_of(tok) or not control_ids(tok).issuperset(beyond):
            raise UserError(
                f"tokenizer has ids up to {used - 1}, the model's vocabulary ends at {vocab_size - 1}: they do not fit"
            )
        names = ", ".join(tok.convert_ids_to_tokens(beyond[:3])) + (", ..." if len(beyond) > 3 else "")
        warn(f"tokenizer has {len(beyond)} control tokens that the model has no rows for ({names}); they are not used")
    if used < vocab_size - NUM_SPECIAL:
        warn(f"tokenizer has {used} ids, the model {vocab_size}: {vocab_size - used} rows will never be used")


def encode_text(tok: "PreTrainedTokenizerFast", text: str) -> list[int]:
    """Ids of `text` as plain content: nothing added, and `<|eot_id|>` written in it is ordinary characters.

    Raises:
        UserError: a control id would appear all the same (a vocabulary that holds such a string as an ordinary entry).
    """
    return encode_texts(tok, [text])[0]


def encode_texts(tok: "PreTrainedTokenizerFast", texts: Iterable[str]) -> list[list[int]]:
    """`encode_text` for many texts at once (the encoder uses several threads if TOKENIZERS_PARALLELISM allows)."""
    plain, controls, unknown = _plain_encoder(tok)
    texts = list(texts)
    encoded = [e.ids for e in plain.encode_batch_fast(texts, add_special_tokens=False)]
    for text, ids in zip(texts, encoded):
        if unknown in ids and tok not in _TOLD:
            _TOLD.add(tok)
            name = tok.convert_ids_to_tokens(unknown)
            warn(f"tokenizer: text {text[:60]!r} has characters that its vocabulary lacks; all such become {name}")
        if not controls.isdisjoint(ids):
            names = sorted({tok.convert_ids_to_tokens(i) for i in controls.intersection(ids)})
            raise UserError(
                f"text {text[:60]!r} would produce control token {', '.join(names)}; this tokenizer is not safe"
            )
    return encoded


def text_spans(tok: "PreTrainedTokenizerFast", text: str) -> list[tuple[int, int]]:
    """(first, end) of the characters that each token of `encode_text` holds; tokens that share one overlap in it."""
    return _plain_encoder(tok)[0].encode(text, add_special_tokens=False).offsets


def save_tokenizer(tok: "PreTrainedTokenizerFast", folder: str | os.PathLike) -> list[Path]:
    """Writes tokenizer.json, tokenizer_config.json, special_tokens_map.json, a chat template where there is one.

    Written here rather than by `save_pretrained`, which since transformers 5 names a class that 4.x does not know. The
    chat template stands in the config as well, where older readers look.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    roles = _roles(tok)
    added = {
        str(i): {k: getattr(t, k) for k in ("content", "lstrip", "normalized", "rstrip", "single_word", "special")}
        for i, t in sorted(tok.added_tokens_decoder.items())
    }
    template = {"chat_template": tok.chat_template} if tok.chat_template else {}
    if isinstance(tok.chat_template, dict):  # several, by name
        template = {"chat_template": [{"name": k, "template": v} for k, v in tok.chat_template.items()]}
    # Whether a begin token goes in front of plain text, where no chat format says so (plain_text.text_start).
    syntax, begin = syntax_of(tok), {k: v for k, v in tok.init_kwargs.items() if k == "add_bos_token"}
    begin = {} if syntax and syntax.begin else begin
    config = {
        "added_tokens_decoder": added,
        **roles,
        **template,
        **begin,
        "clean_up_tokenization_spaces": False,
        "model_input_names": ["input_ids", "attention_mask"],
        "model_max_length": tok.model_max_length,
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    files = {
        "tokenizer.json": json.dumps(backend_json(tok), ensure_ascii=False),
        "tokenizer_config.json": json.dumps(config, indent=2, ensure_ascii=False) + "\n",
        "special_tokens_map.json": json.dumps(roles, indent=2, ensure_ascii=False) + "\n",
    }
    if isinstance(tok.chat_template, str):
        files["chat_template.jinja"] = tok.chat_template
    for name, text in files.items():
        (folder / name).write_text(text, encoding="utf-8")
    return [folder / name for name in files]


def _transformers():
    """The `transformers` module without its advice about a missing torch."""
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    import transformers

    transformers.logging.set_verbosity_error()
    return transformers


def _read_text(path: Path) -> str:
    with open_file(path, f"tokenizer: {path}") as f:
        data = f.read(_LARGEST + 1)
    if len(data) > _LARGEST:
        raise UserError(f"tokenizer: {path} is larger than {_LARGEST >> 20} MiB; not a file of a tokenizer")
    try:
        text = data.decode()
    except UnicodeDecodeError as e:
        raise UserError(f"tokenizer: cannot read {path}: {e}") from e
    if text.startswith("version https://git-lfs"):
        raise UserError(f"tokenizer: {path} is a git-lfs pointer, not the file; run `git lfs pull` in its folder")
    return text


def _load_hf(folder: Path, origin: Path | None = None) -> "PreTrainedTokenizerFast":
    """The tokenizer of a folder. `origin`: the user's folder, where this one was made from it."""
    said, shown = {}, origin or folder
    for name in _FILES:  # what the library would open without a look
        if what_is(folder / name):
            text = _read_text(folder / name)
            if name.endswith(".json"):
                try:
                    said[name] = loads(text, dict)
                except BadJSON as e:
                    broken = isinstance(e.__context__, json.JSONDecodeError)
                    line = f":{e.__context__.lineno}" if broken else ""
                    raise UserError(f"not JSON ({e})", place=f"tokenizer: {shown / name}{line}") from e
    if what_is(folder / "additional_chat_templates") == "a folder":
        for file in (folder / "additional_chat_templates").iterdir():
            check_file(file, f"tokenizer: {file}")
    if problem := _would_abort(said.get("tokenizer.json", {})):
        raise UserError(f"tokenizer: {shown / 'tokenizer.json'} cannot be loaded: {problem}")
    try:
        tok = _transformers().PreTrainedTokenizerFast.from_pretrained(str(folder), local_files_only=True)
    except (KeyboardInterrupt, SystemExit):
        raise
    # The library raises plain Exception for a malformed vocabulary, and its part in Rust a BaseException.
    except BaseException as e:
        why = one_line(e)[:300].replace(str(folder), str(shown))  # the library may name the file that it read
        raise UserError(f"tokenizer: {shown / 'tokenizer.json'} cannot be loaded: {why}") from e
    wanted = said.get("tokenizer_config.json", {}).get("add_bos_token")  # the library passes over it
    if isinstance(wanted, bool):
        tok.init_kwargs["add_bos_token"] = wanted
    return tok


def _would_abort(state: dict) -> str:
    """What the library's part in Rust would end the process for, on loading or at the first text; "" for nothing."""
    model, processor = state.get("model"), state.get("post_processor")
    model = model if isinstance(model, dict) else {}
    if isinstance(vocab := model.get("vocab"), dict):
        ids = [i for i in vocab.values() if type(i) is int]  # others are refused in loading
        if max(ids, default=0) > _LARGEST_ID:
            return f"model.vocab holds the id {max(ids)}; the largest that is read is {_LARGEST_ID}"
        if len(set(ids)) < len(ids):
            return f"model.vocab gives {len(ids)} tokens {len(set(ids))} ids; each needs one of its own"
    if isinstance(prefix := model.get("continuing_subword_prefix"), str) and prefix:
        merges = model.get("merges")
        for merge in merges if isinstance(merges, list) else []:
            parts = merge.split(" ") if isinstance(merge, str) else merge
            if isinstance(parts, list) and not str(parts[-1:] and parts[-1]).startswith(prefix):
                return f"model.continuing_subword_prefix is {prefix[:20]!r}, and the merge {str(merge)[:60]} has none"
    more = processor.get("processors") if isinstance(processor, dict) else None
    for step in [processor, *(more if isinstance(more, list) else [])]:
        if not isinstance(step, dict) or step.get("type") != "TemplateProcessing":
            continue
        known = step.get("special_tokens")
        for part in (p for name in ("single", "pair") if isinstance(step.get(name), list) for p in step[name]):
            token = part.get("SpecialToken") if isinstance(part, dict) else None
            name = token.get("id") if isinstance(token, dict) else None
            if isinstance(name, str) and not (isinstance(known, dict) and name in known):
                return f"post_processor names {name[:60]}, which is not in its special_tokens"
    return ""


def _load_model_file(path: Path) -> "PreTrainedTokenizerFast":
    """Meta's ranks file, or a sentencepiece model with the configs that lie beside it."""
    with open_file(path, f"tokenizer: {path}") as f:
        data = f.read(_LARGEST + 1)
    if not is_sentencepiece(data):
        fast = ranks_file.convert_ranks(_read_text(path), path)
        roles = {"bos_token": BOS, "eos_token": EOT, "pad_token": PAD}
        return _transformers().PreTrainedTokenizerFast(tokenizer_object=fast, **roles)
    if len(data) > _LARGEST:
        raise UserError(f"tokenizer: {path} is larger than {_LARGEST >> 20} MiB; not a file of a tokenizer")
    fast, roles = convert(data, str(path))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        fast.save(str(folder / "tokenizer.json"))
        (folder / "tokenizer_config.json").write_text(json.dumps(roles), encoding="utf-8")
        for beside in _FILES[1:]:
            if what_is(path.parent / beside):
                text = _read_text(path.parent / beside)
                with contextlib.suppress(BadJSON):  # said below
                    text = json.dumps({**roles, **loads(text, dict)}) if beside == "tokenizer_config.json" else text
                (folder / beside).write_text(text, encoding="utf-8")
        tok = _load_hf(folder, path.parent)
    tok.name_or_path = str(path.parent)
    return tok


def _with_format(tok: "PreTrainedTokenizerFast", path: Path) -> "PreTrainedTokenizerFast":
    """Sets roles and chat template of the tokenizer's chat format, if it has one (see load_tokenizer)."""
    tok.clean_up_tokenization_spaces = False
    syntax = syntax_of(tok)
    if syntax is None:
        for s in SYNTAXES:  # most of a format's tokens are no accident: then the file is damaged
            if 0 < 2 * len(lost := missing(tok, s)) < len(s.controls):
                raise UserError(f"tokenizer: {path} is not a {s.title} tokenizer: it has no {', '.join(lost)}")
        return tok
    vocab = tok.get_vocab()
    names = dict.fromkeys((*syntax.controls, *syntax.stops))
    weak = [t for t in names if t in vocab and t not in tok.all_special_tokens]
    tok.add_tokens(weak, special_tokens=True)  # flags them; ids stay
    if set(tok.get_vocab()) != set(vocab):
        raise UserError(f"tokenizer: {path}: control tokens are inconsistent between its files")
    if syntax.begin:
        tok.bos_token = syntax.begin
    tok.eos_token = syntax.end
    if tok.pad_token_id is None or tok.pad_token_id in stop_ids(tok):
        tok.pad_token = _pad_token(vocab, syntax)
    own = tok.chat_template
    if own and own != syntax.template and _renders(tok, own) != _renders(tok, syntax.template):
        what = f"its chat template differs from plain {syntax.title}"
        warn(f"{path}: {what}; the plain one is used, here and in exports")
    tok.chat_template = syntax.template
    return tok


def _pad_token(vocab: dict[str, int], syntax: ChatSyntax) -> str:
    for expression in syntax.pads:
        if fit := [t for t in vocab if re.fullmatch(expression, t)]:
            return max(fit, key=vocab.__getitem__)
    return syntax.end


def _roles(tok: "PreTrainedTokenizerFast") -> dict[str, str]:
    """{"bos_token": "<s>", ...}: the tokens with a name of their own."""
    return {k: str(v) for k, v in tok.special_tokens_map.items() if isinstance(v, str)}


def _renders(tok: "PreTrainedTokenizerFast", template: str | dict) -> list[str] | None:
    """What `template` makes of the probe conversation, with and without generation prompt; None if it fails."""
    if isinstance(template, dict):
        template = template.get("default")
    tokens = {k: v for k, v in tok.special_tokens_map.items() if isinstance(v, str)}
    return render(template, _PROBE, tokens) if isinstance(template, str) else None


def _looks_control(text: str) -> bool:
    return re.fullmatch(r"<\|.*\|>", text, re.DOTALL) is not None


def backend_json(tok: "PreTrainedTokenizerFast") -> dict:
    """The `tokenizers` state without truncation and padding, which belong to the last call, not to the tokenizer."""
    return {**json.loads(tok.backend_tokenizer.to_str()), "truncation": None, "padding": None}


def _plain_encoder(tok: "PreTrainedTokenizerFast") -> "tuple[Tokenizer, frozenset[int], int | None]":
    """A copy of the encoder for which control tokens do not exist, the ids that text must not produce, and the id of
    characters that the vocabulary lacks; made once per tokenizer.

    A copy, because the switch for it (`encode_special_tokens`) is state that `tok(...)` itself flips. It acts on tokens
    flagged special, so the flag is first set on exactly the control tokens; other added tokens go on matching.
    """
    if tok not in _PLAIN:
        from tokenizers import Tokenizer

        state, controls = backend_json(tok), control_ids(tok)
        for token in state["added_tokens"]:
            token["special"] = token["id"] in controls
        plain = Tokenizer.from_str(json.dumps(state))
        plain.encode_special_tokens = True
        model = state["model"]
        unknown = model["unk_id"] if "unk_id" in model else token_id(tok, model.get("unk_token"))
        if unknown in (tok.bos_token_id, *stop_ids(tok)):
            unknown = None
        _PLAIN[tok] = plain, controls - {unknown}, unknown
    return _PLAIN[tok]
