"""Trains a tokenizer on records and writes it as a Hugging Face folder; by default that of the embedded demo.

    python -m scripts.make_tokenizer                     from the repository root; writes mmed_jax/assets/demo
    python -m scripts.make_tokenizer --records=a.jsonl,b.jsonl --vocab_size=16384 --output=DIR

For models trained from random weights. A published model brings its own tokenizer.

The same records, prompts and `tokenizers` release give the same bytes. To be run again when hand-crafted records or
prompt wordings change; a demo model trained before then no longer fits.

Byte-level BPE as in Llama 3: Meta's split expression, all 256 bytes in the alphabet so that any text can be written, no
normalisation, whole words looked up first. The names of the special tokens and their order are those of Llama 3.1, only
16 of them instead of 256, behind the base vocabulary.
"""

import argparse
from collections.abc import Iterable, Iterator
from pathlib import Path

from mmed_jax.common.errors import UserError, WorkError, run_command
from mmed_jax.data.multiple_choice import mcq_messages
from mmed_jax.data.records.reading import read_records
from mmed_jax.data.records.schema import LANGUAGES, kind_of
from mmed_jax.data.tokenizers import tokenizer as llama3

ROOT = Path(__file__).resolve().parents[1]
RECORDS = (ROOT / "data_gen/handcrafted/instructions.jsonl", ROOT / "data_gen/handcrafted/mcq.jsonl")
OUTPUT = ROOT / "mmed_jax/assets/demo"
VOCAB_SIZE = 4096
NUM_SPECIAL = 16
MODEL_MAX_LENGTH = 2048


def messages_of(record: dict) -> list[list[dict]]:
    """The conversations that training makes of `record`: one, or for multiple choice one per mode."""
    if kind_of(record) == "instruction":
        return [record["messages"]]
    modes = ("rationale", "direct") if record.get("rationale") else ("direct",)
    return [mcq_messages(record, mode) for mode in modes]


def training_lines(records: Iterable[dict]) -> Iterator[str]:
    """Lines (with their line ends) as the model sees them, each once per record.

    Once per record, because a question stands in both modes: counted twice, each of its phrases would pass for a
    frequent one. Not once per corpus, because the wording of the instruction is as frequent as it looks.
    """
    for record in records:
        contents = (m["content"].strip() for messages in messages_of(record) for m in messages)
        yield from dict.fromkeys(line for content in contents for line in content.splitlines(keepends=True))


def train(lines: Iterable[str], vocab_size: int):
    """A PreTrainedTokenizerFast of exactly `vocab_size` ids, the last NUM_SPECIAL of them special.

    Raises:
        WorkError: the text is too small to fill the vocabulary with pairs that occur twice.
    """
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    fast = Tokenizer(models.BPE(ignore_merges=True))
    split = pre_tokenizers.Split(Regex(llama3.SPLIT_PATTERN), behavior="isolated")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    fast.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    fast.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - NUM_SPECIAL,
        min_frequency=2,
        show_progress=False,
        initial_alphabet=sorted(llama3.byte_chars().values()),
    )
    fast.train_from_iterator(lines, trainer)
    if (got := fast.get_vocab_size()) != vocab_size - NUM_SPECIAL:
        raise WorkError(f"the text fills {got} base entries, not {vocab_size - NUM_SPECIAL}; lower --vocab_size")
    names = llama3.special_token_names()[:NUM_SPECIAL]
    fast.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in names])
    begin = processors.TemplateProcessing(
        single=f"{llama3.BOS} $A",
        pair=f"{llama3.BOS} $A {llama3.BOS}:1 $B:1",
        special_tokens=[(llama3.BOS, fast.token_to_id(llama3.BOS))],
    )
    fast.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=False), begin])
    tok = PreTrainedTokenizerFast(
        tokenizer_object=fast,
        bos_token=llama3.BOS,
        eos_token=llama3.EOT,
        pad_token=llama3.PAD,
        model_max_length=MODEL_MAX_LENGTH,
        clean_up_tokenization_spaces=False,
    )
    tok.chat_template = llama3.LLAMA3_CHAT_TEMPLATE
    return tok


def statistics(tok, records: list[dict]) -> str:
    """A table: per language the tokens per character of the text and the mean tokens per conversation, by kind."""
    rows = [f"{'':10}{'tokens/char':>12}{'tokens per instruction':>24}{'per mcq rationale':>19}{'per mcq direct':>16}"]
    for language in LANGUAGES:
        chars = tokens = 0
        lengths: dict[str, list[int]] = {"instruction": [], "rationale": [], "direct": []}
        for record in (r for r in records if r["language"] == language):
            conversations = messages_of(record)
            modes = ("rationale", "direct")[-len(conversations) :]
            names = ("instruction",) if kind_of(record) == "instruction" else modes
            for name, messages in zip(names, conversations):
                lengths[name].append(len(tok.apply_chat_template(messages, tokenize=True, return_dict=False)))
                for ids, m in zip(llama3.encode_texts(tok, [m["content"] for m in messages]), messages):
                    chars, tokens = chars + len(m["content"]), tokens + len(ids)
        means = [f"{sum(v) / len(v):.1f} (max {max(v)})" if v else "-" for v in lengths.values()]
        rows.append(f"{language:10}{tokens / max(chars, 1):12.3f}{means[0]:>24}{means[1]:>19}{means[2]:>16}")
    return "\n".join(rows)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--records", default="", help="record files, a,b,c (default: the hand-crafted ones)")
    parser.add_argument("--vocab_size", type=int, default=VOCAB_SIZE, help=f"ids in all (default: {VOCAB_SIZE})")
    parser.add_argument("--output", type=Path, default=OUTPUT, help="folder to write (default: mmed_jax/assets/demo)")
    args = parser.parse_args(argv)
    paths = [Path(p) for p in args.records.split(",") if p] or list(RECORDS)
    if args.records and args.output == OUTPUT:
        raise UserError("--output: name a folder; the default one belongs to the embedded demo")
    missing = [str(p) for p in paths if not p.is_file()]
    if missing:
        raise UserError(f"records not found: {', '.join(missing)}")
    records = [record for path in paths for record in read_records(path)]
    tok = train(training_lines(records), args.vocab_size)
    files = llama3.save_tokenizer(tok, args.output)
    print(statistics(tok, records))
    print(f"{len(tok)} ids from {len(records)} records: {', '.join(f.name for f in files)} in {args.output}")


if __name__ == "__main__":
    run_command(main)
