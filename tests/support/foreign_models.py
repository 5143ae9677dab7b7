"""Llama folders that are not Llama-3: foreign tokenizers made on the spot, a trained model in llama2.c's format."""

import json
import struct
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from tests.support.hf_folders import hf_folder
from tests.support.tokenizer import TEXT

SPECIALS = ("<unk>", "<s>", "</s>")


def save(folder: Path, tokenizer: Tokenizer, **config) -> Path:
    """Writes tokenizer.json and, when `config` says anything, tokenizer_config.json."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    if config:
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def gpt2_like(*, added: tuple[str, ...] = (), vocab_size: int = 400) -> Tokenizer:
    """Byte-level BPE with GPT-2's splitting; no begin token, nothing put in front of a text."""
    tok = Tokenizer(models.BPE())
    tok.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tok.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - 1 - len(added),
        special_tokens=["<|endoftext|>"],
        show_progress=False,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )
    tok.train_from_iterator(TEXT * 3, trainer)
    tok.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in added])
    return tok


CHATML = ("<|im_start|>", "<|im_end|>", "<|pad|>")
# As published with SmolLM: the default system message left out, contents not trimmed.
CHATML_TEMPLATE = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n'}}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def chatml_tokenizer(folder: Path, *, vocab_size: int = 400, **config) -> Path:
    """Writes the folder of a ChatML tokenizer: byte-level BPE of GPT-2's kind, no begin token."""
    roles = {"eos_token": "<|endoftext|>", "pad_token": "<|pad|>", "chat_template": CHATML_TEMPLATE}
    return save(folder, gpt2_like(added=CHATML, vocab_size=vocab_size), **{**roles, **config})


def sentencepiece_like(pieces: list[str], *, first: bool = False) -> Tokenizer:
    """BPE as transformers makes it of a Llama-2 tokenizer.model: `pieces` by rank (spaces as they are), 256 bytes.

    `first`: the space in front of a text comes from the splitter, at the beginning only, not from the normaliser.
    """
    pieces = [p.replace(" ", "▁") for p in pieces]
    vocab = {t: i for i, t in enumerate([*SPECIALS, *(f"<0x{b:02X}>" for b in range(256)), *pieces])}
    assert len(vocab) == len(SPECIALS) + 256 + len(pieces)
    merges = [(p[:i], p[i:]) for p in pieces for i in range(1, len(p)) if p[:i] in vocab and p[i:] in vocab]
    tok = Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    if first:
        tok.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    else:
        tok.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tok.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tok.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in SPECIALS])
    tok.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", vocab["<s>"])])
    return tok


PIECES = [
    " ",
    *"abcdefghijklmnopqrstuvwxyzTA.,:?é",
    " t",
    "th",
    "he",
    " th",
    " the",
    "er",
    " a",
    "in",
    "nd",
    " and",
    "ver",
    " f",
    " fe",
    " fever",
    " The",
    " c",
    " co",
    "ug",
    "ugh",
    " cough",
]


def foreign_model(folder: Path, tokenizer: Tokenizer, config: dict | None = None, vocab_size: int = 512, **changes):
    """A random tiny Llama of `vocab_size` rows with a foreign tokenizer beside it; the folder."""
    none = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
    sizes = {"vocab_size": vocab_size, "num_hidden_layers": 2, "max_position_embeddings": 1024}
    hf_folder(folder, tokenizer=False, **{**none, **sizes, **changes})
    return save(folder, tokenizer, **config or {})


def sentencepiece_model(folder: Path, pieces: list[str], **config) -> Path:
    """Writes a sentencepiece tokenizer.model of BPE with the pieces of sentencepiece_like, and no tokenizer.json."""
    from transformers.convert_slow_tokenizer import import_protobuf

    proto = import_protobuf().ModelProto()
    proto.trainer_spec.model_type, proto.trainer_spec.byte_fallback = 2, True
    proto.normalizer_spec.remove_extra_whitespaces = False
    texts = [*SPECIALS, *(f"<0x{b:02X}>" for b in range(256)), *(p.replace(" ", "▁") for p in pieces)]
    for i, text in enumerate(texts):
        kind = 2 if i == 0 else 3 if i < 3 else 6 if i < 259 else 1
        proto.pieces.add(piece=text, score=float(-max(0, i - 259)) if kind == 1 else 0.0, type=kind)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.model").write_bytes(proto.SerializeToString())
    if config:
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


# ---- llama2.c -----------------------------------------------------------------------------------------------------


def read_llama2c(path: Path) -> tuple[dict, dict[str, np.ndarray]]:
    """(config.json, tensors under their HF names) of a legacy llama2.c file (run.c: memory_map_weights)."""
    data = path.read_bytes()
    dim, mlp, layers, heads, kv_heads, vocab, length = struct.unpack("<7i", data[:28])
    head, at = dim // heads, 28

    def take(*shape: int) -> np.ndarray:
        nonlocal at
        start, at = at, at + 4 * int(np.prod(shape))
        return np.frombuffer(data[start:at], "<f4").reshape(shape)

    def halves(w: np.ndarray) -> np.ndarray:
        """Rotated pairs lie side by side in llama2.c; in HF folders in the two halves of a head."""
        return w.reshape(-1, head // 2, 2, dim).swapaxes(1, 2).reshape(w.shape)

    tensors = {"model.embed_tokens.weight": take(abs(vocab), dim)}
    rows = {
        "input_layernorm": (dim,),
        "self_attn.q_proj": (dim, dim),
        "self_attn.k_proj": (kv_heads * head, dim),
        "self_attn.v_proj": (kv_heads * head, dim),
        "self_attn.o_proj": (dim, dim),
        "post_attention_layernorm": (dim,),
        "mlp.gate_proj": (mlp, dim),
        "mlp.down_proj": (dim, mlp),
        "mlp.up_proj": (mlp, dim),
    }
    for name, shape in rows.items():
        for i, w in enumerate(take(layers, *shape)):
            tensors[f"model.layers.{i}.{name}.weight"] = halves(w) if name[-6:-5] in "qk" and "attn" in name else w
    tensors["model.norm.weight"] = take(dim)
    take(2, length, head // 2)  # cosines and sines
    if vocab < 0:
        tensors["lm_head.weight"] = take(-vocab, dim)
    assert at == len(data), "not a legacy llama2.c file"
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": abs(vocab),
        "hidden_size": dim,
        "intermediate_size": mlp,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "max_position_embeddings": length,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "tie_word_embeddings": vocab > 0,
        "hidden_act": "silu",
        "torch_dtype": "float32",
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    return config, {k: np.ascontiguousarray(v) for k, v in tensors.items()}


def read_llama2c_pieces(path: Path) -> list[str]:
    """The pieces of a llama2.c tokenizer behind <unk>, <s>, </s> and the 256 bytes, in the order of their ranks."""
    data, at, found = path.read_bytes(), 4, []
    while at < len(data):
        _, length = struct.unpack_from("<fi", data, at)
        found.append(data[at + 8 : at + 8 + length].decode())
        at += 8 + length
    return found[3 + 256 :]


def llama2c_folder(folder: Path, weights: Path, tokenizer: Path) -> Path:
    """An HF folder of llama2.c's two files."""
    config, tensors = read_llama2c(weights)
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    roles = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    return save(folder, sentencepiece_like(read_llama2c_pieces(tokenizer)), **roles)
