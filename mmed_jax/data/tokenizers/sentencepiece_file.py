"""A sentencepiece `tokenizer.model` (Llama 2 and its kin) as a fast tokenizer, as transformers converts one.

Read with the schema that comes with transformers, so the sentencepiece package is not needed.
"""

from typing import Any

from mmed_jax.common.errors import UserError

_NORMAL, _UNKNOWN, _CONTROL, _DEFINED = 1, 2, 3, 4  # kinds of pieces, sentencepiece_model.proto
_UNIGRAM, _BPE = 1, 2


def is_sentencepiece(head: bytes) -> bool:
    """Whether a file that begins with `head` may be one: its first field, the pieces, has the number 1."""
    return head[:1] == b"\n"


def convert(data: bytes, where: str) -> tuple[Any, dict[str, str]]:
    """(tokenizers.Tokenizer, {"bos_token": "<s>", ...}) of the bytes of a model; `<s>` goes in front of a text.

    Args:
        where: what to call the file.

    Raises:
        UserError: not such a file, or one that splits text into words or characters.
    """
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, processors

    proto = _parsed(data, where)
    trainer, rules = proto.trainer_spec, proto.normalizer_spec
    if trainer.model_type not in (_UNIGRAM, _BPE):
        raise UserError(f"tokenizer: {where} is a sentencepiece model that is neither BPE nor unigram")
    scores = [(p.piece, p.score) for p in proto.pieces]
    ids = {piece: i for i, (piece, _) in enumerate(scores)}
    if trainer.model_type == _BPE:
        tok = Tokenizer(
            models.BPE(
                ids,
                _merges(proto.pieces, ids),
                unk_token=trainer.unk_piece,
                fuse_unk=True,
                byte_fallback=trainer.byte_fallback,
            )
        )
    else:
        tok = Tokenizer(models.Unigram(scores, trainer.unk_id, trainer.byte_fallback))
    steps = [normalizers.Precompiled(rules.precompiled_charsmap)] if rules.precompiled_charsmap else []
    if rules.remove_extra_whitespaces:
        steps += [normalizers.Strip(), normalizers.Replace(Regex(" {2,}"), " ")]
    steps += [normalizers.Prepend("▁")] if rules.add_dummy_prefix else []
    tok.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", "▁")])
    strip = [decoders.Strip(" ", 1, 0)] if rules.add_dummy_prefix else []
    tok.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *strip])
    tok.add_tokens(
        [
            AddedToken(p.piece, normalized=False, special=p.type != _DEFINED)
            for p in proto.pieces
            if p.type in (_UNKNOWN, _CONTROL, _DEFINED)
        ]
    )
    numbers = {"bos_token": trainer.bos_id, "eos_token": trainer.eos_id, "unk_token": trainer.unk_id}
    roles = {role: scores[i][0] for role, i in numbers.items() if 0 <= i < len(scores)}
    if bos := roles.get("bos_token"):
        tok.post_processor = processors.TemplateProcessing(single=f"{bos} $A", special_tokens=[(bos, ids[bos])])
    return tok, roles


def _parsed(data: bytes, where: str) -> Any:
    try:
        from google.protobuf.message import DecodeError
        from transformers.convert_slow_tokenizer import import_protobuf

        proto = import_protobuf().ModelProto()
    except ImportError as e:
        raise UserError(f"tokenizer: {where}: sentencepiece models need the package protobuf (pip install it)") from e
    try:
        proto.ParseFromString(data)
    except DecodeError as e:
        raise UserError(f"tokenizer: {where} looks like a sentencepiece model and is none, or is cut short") from e
    kinds = [p.type for p in proto.pieces]
    whole = 0 <= proto.trainer_spec.unk_id < len(kinds) and kinds[proto.trainer_spec.unk_id] == _UNKNOWN
    if not whole or len({p.piece for p in proto.pieces}) != len(kinds):
        raise UserError(f"tokenizer: {where} is a sentencepiece model without its pieces, or with one of them twice")
    return proto


def _merges(pieces: Any, ids: dict[str, int]) -> list[tuple[str, str]]:
    """Every cut of a piece into two, the piece with the best score first, as sentencepiece joins them."""
    from transformers.convert_slow_tokenizer import generate_merges

    others = {p.piece for p in pieces if p.type != _NORMAL}
    return generate_merges(ids, [(p.piece, p.score) for p in pieces], skip_tokens=others)
