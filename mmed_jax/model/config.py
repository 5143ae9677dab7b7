"""LlamaConfig: every constant of a Llama-3 model, read from and written to a Hugging Face config.json.

Nothing is guessed from a model's name. A key that could change the mathematics and is not understood is an error.
"""

import dataclasses
import json
import math
from typing import Any

from mmed_jax.errors import UserError, nearest

ROPE_TYPES = ("default", "llama3")


@dataclasses.dataclass(frozen=True)
class RopeScaling:
    """Llama-3.1 frequency scaling (rope_type "llama3").

    Wavelengths above original/low_freq_factor are stretched by `factor`, those below original/high_freq_factor are
    kept, those between are interpolated.
    """

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position_embeddings: int


@dataclasses.dataclass(frozen=True)
class LlamaConfig:
    """Architecture constants, named as in config.json (layers, heads and kv heads shortened)."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    rope_theta: float = 500000.0
    rope_scaling: RopeScaling | None = None
    rms_norm_eps: float = 1e-5
    max_position_embeddings: int = 8192
    tie_word_embeddings: bool = False
    attention_bias: bool = False
    mlp_bias: bool = False
    initializer_range: float = 0.02
    bos_token_id: int | None = 128000
    eos_token_id: tuple[int, ...] = (128001,)
    pad_token_id: int | None = None


# Keys that carry no mathematics of the forward pass: provenance, generation defaults, training switches.
HARMLESS = frozenset(
    """_attn_implementation _attn_implementation_autoset _commit_hash _name_or_path architectures attn_implementation
    begin_suppress_tokens bad_words_ids bos_token_id decoder_start_token_id diversity_penalty do_sample dtype
    early_stopping exponential_decay_length_penalty finetuning_task forced_bos_token_id forced_eos_token_id
    gradient_checkpointing id2label keys_to_ignore_at_inference label2id length_penalty max_length min_length
    model_max_length neftune_noise_alpha no_repeat_ngram_size num_beam_groups num_beams num_return_sequences
    output_attentions output_hidden_states output_scores prefix problem_type remove_invalid_values repetition_penalty
    return_dict return_dict_in_generate sep_token_id suppress_tokens task_specific_params temperature tf_legacy_loss
    tokenizer_class top_k top_p torch_dtype torchscript transformers_version typical_p unsloth_fixed unsloth_version
    use_cache""".split()
)

# Keys that are understood at one value only: the value at which they change nothing.
FIXED: dict[str, tuple[Any, ...]] = {
    "model_type": ("llama",),
    "hidden_act": ("silu", "swish"),
    "pretraining_tp": (1, None),
    "attention_dropout": (0, None),
    "embd_pdrop": (0, None),
    "resid_pdrop": (0, None),
    "hidden_dropout": (0, None),
    "partial_rotary_factor": (1, None),
    "rope_interleaved": (False, None),
    "is_decoder": (False, True, None),
    "is_encoder_decoder": (False, None),
    "add_cross_attention": (False, None),
    "tie_encoder_decoder": (False, None),
    "cross_attention_hidden_size": (None,),
    "chunk_size_feed_forward": (0, None),
    "pruned_heads": ({}, None),
    "use_bfloat16": (False, None),
}
ARCHITECTURES = ("LlamaForCausalLM", "LlamaModel")

# config.json name -> (our field, type, default of transformers' LlamaConfig or REQUIRED)
REQUIRED = object()
FIELDS: dict[str, tuple[str, type, Any]] = {
    "vocab_size": ("vocab_size", int, REQUIRED),
    "hidden_size": ("hidden_size", int, REQUIRED),
    "intermediate_size": ("intermediate_size", int, REQUIRED),
    "num_hidden_layers": ("num_layers", int, REQUIRED),
    "num_attention_heads": ("num_heads", int, REQUIRED),
    "num_key_value_heads": ("num_kv_heads", int, None),
    "head_dim": ("head_dim", int, None),
    "rms_norm_eps": ("rms_norm_eps", float, 1e-6),
    "max_position_embeddings": ("max_position_embeddings", int, 2048),
    "tie_word_embeddings": ("tie_word_embeddings", bool, False),
    "attention_bias": ("attention_bias", bool, False),
    "mlp_bias": ("mlp_bias", bool, False),
    "initializer_range": ("initializer_range", float, 0.02),
}
SPECIAL = ("rope_theta", "rope_scaling", "rope_parameters", "bos_token_id", "eos_token_id", "pad_token_id")
DEFAULT_THETA = 10000.0


def from_hf(d: dict) -> LlamaConfig:
    """Reads the content of a config.json, of transformers 4.x (rope_theta, rope_scaling) or 5.x (rope_parameters).

    An absent key takes the default that transformers' LlamaConfig gives it.

    Raises:
      UserError: not a Llama, a missing key, a wrong type, a rope type other than default and llama3, or a key that
        is not understood and whose value is not null; the key and its value are named.
    """
    if not isinstance(d, dict):
        raise UserError(f"config.json: must be an object, got {type(d).__name__}")
    if "model_type" not in d:
        raise UserError("config.json: model_type is missing (must be 'llama')")
    for key, value in d.items():
        _check_key(key, value)
    values = {}
    for key, (field, kind, default) in FIELDS.items():
        value = d.get(key)
        if value is None:
            if default is REQUIRED:
                raise UserError(f"config.json: {key} is missing")
            value = default
        else:
            value = _typed(key, value, kind)
        values[field] = value
    if values["num_kv_heads"] is None:
        values["num_kv_heads"] = values["num_heads"]
    if values["head_dim"] is None:
        values["head_dim"] = values["hidden_size"] // max(values["num_heads"], 1)
    theta, scaling = _rope(d)
    cfg = LlamaConfig(
        **values,
        rope_theta=theta,
        rope_scaling=scaling,
        bos_token_id=_token(d, "bos_token_id", 1),
        eos_token_id=_tokens(d, "eos_token_id", 2),
        pad_token_id=_token(d, "pad_token_id", None),
    )
    check(cfg)
    return cfg


def check(cfg: LlamaConfig, where: str = "config.json") -> LlamaConfig:
    """Returns `cfg` when its sizes fit together.

    Raises:
      UserError: naming the field, its value and what it must be.
    """

    def need(ok: bool, field: str, rule: str) -> None:
        if not ok:
            raise UserError(f"{where}: {field}={getattr(cfg, field)}: {rule}")

    for field in ("vocab_size", "hidden_size", "intermediate_size", "num_layers", "num_heads", "num_kv_heads"):
        need(getattr(cfg, field) >= 1, field, "must be at least 1")
    # transformers refuses such a config even when head_dim is given.
    need(cfg.hidden_size % cfg.num_heads == 0, "hidden_size", f"must be a multiple of the {cfg.num_heads} heads")
    need(cfg.head_dim >= 2 and cfg.head_dim % 2 == 0, "head_dim", "must be even (rotary embeddings turn pairs)")
    divisors = [k for k in range(1, cfg.num_heads + 1) if cfg.num_heads % k == 0]
    need(cfg.num_kv_heads in divisors, "num_kv_heads", f"must divide the {cfg.num_heads} heads: one of {divisors}")
    need(cfg.max_position_embeddings >= 1, "max_position_embeddings", "must be at least 1")
    need(cfg.rms_norm_eps > 0, "rms_norm_eps", "must be above 0")
    need(cfg.rope_theta > 0, "rope_theta", "must be above 0")
    need(cfg.initializer_range >= 0, "initializer_range", "must not be negative")
    s = cfg.rope_scaling
    if s is not None:
        ok = s.factor >= 1 and 0 < s.low_freq_factor < s.high_freq_factor and s.original_max_position_embeddings >= 1
        need(ok, "rope_scaling", "needs factor >= 1, 0 < low_freq_factor < high_freq_factor, original window >= 1")
    return cfg


def _check_key(key: str, value: Any) -> None:
    if key in FIELDS or key in SPECIAL or key in HARMLESS:
        if key == "architectures" and value is not None:
            names = value if isinstance(value, list) else [value]
            for name in names:
                if name not in ARCHITECTURES:
                    raise UserError(f"config.json: architectures={names}: supported are {', '.join(ARCHITECTURES)}")
        return
    if key in FIXED:
        # `True == 1`, so booleans only match booleans.
        ok = any(value == v and isinstance(value, bool) == isinstance(v, bool) for v in FIXED[key])
        if not ok:
            wanted = " or ".join(json.dumps(v) for v in FIXED[key])
            raise UserError(f"config.json: {key}={_shown(value)} is not supported; supported: {wanted}")
        return
    if value is not None:
        raise UserError(
            f"config.json: {key}={_shown(value)} is not known and could change the mathematics"
            f"{nearest(key, [*FIELDS, *SPECIAL]) if value is not False else ''}"
        )


def _shown(value: Any) -> str:
    text = json.dumps(value, default=str)
    return text if len(text) <= 80 else text[:77] + "..."


def _typed(key: str, value: Any, kind: type) -> Any:
    if kind is bool:
        ok = isinstance(value, bool)
    elif kind is int:
        ok = isinstance(value, int) and not isinstance(value, bool)
    else:
        ok = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if not ok:
        name = {bool: "true or false", int: "an integer", float: "a number"}[kind]
        raise UserError(f"config.json: {key}={_shown(value)}: must be {name}")
    return kind(value)


def _token(d: dict, key: str, default: int | None) -> int | None:
    value = d.get(key, default)
    return None if value is None else _typed(key, value, int)


def _tokens(d: dict, key: str, default: int) -> tuple[int, ...]:
    value = d.get(key, default)
    if value is None:
        return ()
    return tuple(_typed(key, v, int) for v in (value if isinstance(value, list) else [value]))


def _rope(d: dict) -> tuple[float, RopeScaling | None]:
    """rope_theta and scaling out of whichever schema is present; both present must say the same."""
    found = {}
    for key in ("rope_parameters", "rope_scaling"):
        if d.get(key) not in (None, {}):
            found[key] = _rope_dict(key, d[key])
    thetas = {f"{k}.rope_theta": theta for k, (theta, _) in found.items() if theta is not None}
    if d.get("rope_theta") is not None:
        thetas["rope_theta"] = _typed("rope_theta", d["rope_theta"], float)
    if len(set(thetas.values())) > 1:
        raise UserError("config.json: " + ", ".join(f"{k}={v:g}" for k, v in thetas.items()) + " contradict each other")
    # `rope_scaling: null` beside rope_parameters says "see rope_parameters" (transformers 5 reads it so).
    scalings = {scaling for _, scaling in found.values()}
    if len(scalings) > 1:
        raise UserError(
            f"config.json: rope_scaling={_shown(d['rope_scaling'])} and "
            f"rope_parameters={_shown(d['rope_parameters'])} contradict each other"
        )
    return next(iter(thetas.values()), DEFAULT_THETA), next(iter(scalings), None)


def _rope_dict(key: str, value: Any) -> tuple[float | None, RopeScaling | None]:
    if not isinstance(value, dict):
        raise UserError(f"config.json: {key}={_shown(value)}: must be an object or null")
    v = {k: x for k, x in value.items() if x is not None}
    theta = _typed(f"{key}.rope_theta", v.pop("rope_theta"), float) if "rope_theta" in v else None
    kinds = {k: v.pop(k) for k in ("rope_type", "type") if k in v}
    if len(set(map(str, kinds.values()))) > 1:
        raise UserError(f"config.json: {key}.rope_type and {key}.type contradict each other: {_shown(value)}")
    kind = next(iter(kinds.values()), "default")
    if kind not in ROPE_TYPES:
        raise UserError(f"config.json: {key}.rope_type={_shown(kind)} is not supported; one of {', '.join(ROPE_TYPES)}")
    if v.get("partial_rotary_factor") == 1:
        v.pop("partial_rotary_factor")
    names = [f.name for f in dataclasses.fields(RopeScaling)] if kind == "llama3" else []
    for name in v:
        if name not in names:
            raise UserError(f"config.json: {key}.{name}={_shown(v[name])} is not known for rope_type '{kind}'")
    for name in names:
        if name not in v:
            raise UserError(f"config.json: {key}.{name} is missing (rope_type '{kind}')")
    if kind == "default":
        return theta, None
    types = {f.name: f.type for f in dataclasses.fields(RopeScaling)}
    return theta, RopeScaling(**{n: _typed(f"{key}.{n}", v[n], types[n]) for n in names})


def to_hf(cfg: LlamaConfig, dtype: str = "bfloat16") -> dict:
    """The content of a config.json that transformers 4.x and 5.x both read.

    4.x reads rope_theta and rope_scaling, 5.x rope_parameters; both are written and say the same.

    Args:
      dtype: "bfloat16", "float16" or "float32", the type of the stored weights.
    """
    d: dict[str, Any] = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "attention_dropout": 0.0,
        "pretraining_tp": 1,
        "use_cache": True,
        "dtype": dtype,
        "torch_dtype": dtype,
    }
    d |= {key: getattr(cfg, field) for key, (field, _, _) in FIELDS.items()}
    d["bos_token_id"] = cfg.bos_token_id
    d["eos_token_id"] = cfg.eos_token_id[0] if len(cfg.eos_token_id) == 1 else list(cfg.eos_token_id) or None
    d["pad_token_id"] = cfg.pad_token_id
    scaling = {"rope_type": "llama3"} | dataclasses.asdict(cfg.rope_scaling) if cfg.rope_scaling else None
    d["rope_theta"] = cfg.rope_theta
    d["rope_scaling"] = scaling
    d["rope_parameters"] = (scaling or {"rope_type": "default"}) | {"rope_theta": cfg.rope_theta}
    return d


def num_params(cfg: LlamaConfig) -> int:
    """Number of parameters; tied embeddings count once."""
    d, nh, kh, f = cfg.hidden_size, cfg.num_heads * cfg.head_dim, cfg.num_kv_heads * cfg.head_dim, cfg.intermediate_size
    layer = 2 * d + d * (2 * nh + 2 * kh) + 3 * d * f
    layer += (nh + 2 * kh + d if cfg.attention_bias else 0) + (2 * f + d if cfg.mlp_bias else 0)
    return cfg.vocab_size * d * (1 if cfg.tie_word_embeddings else 2) + cfg.num_layers * layer + d


def _llama(hidden: int, mlp: int, layers: int, heads: int, factor: float | None = None, **kw: Any) -> LlamaConfig:
    scaling = RopeScaling(factor, 1.0, 4.0, 8192) if factor else None
    return LlamaConfig(
        vocab_size=128256, hidden_size=hidden, intermediate_size=mlp, num_layers=layers, num_heads=heads,
        num_kv_heads=8, head_dim=kw.pop("head_dim", 128), rope_scaling=scaling,
        max_position_embeddings=131072 if factor else 8192, **kw,
    )  # fmt: skip


# Constants of the config.json files published with the weights (meta-llama/...); eos of the base models, except 3.3,
# which was published as an instruct model only.
PRESETS: dict[str, LlamaConfig] = {
    # 1.3 M parameters: large enough to memorise the hand-crafted records, small enough for minutes on a CPU.
    "demo": LlamaConfig(
        vocab_size=4096, hidden_size=128, intermediate_size=384, num_layers=4, num_heads=4, num_kv_heads=2,
        head_dim=32, max_position_embeddings=2048, tie_word_embeddings=True, bos_token_id=4080,
        eos_token_id=(4081, 4088, 4089), pad_token_id=4084,
    ),
    "llama3-8b": _llama(4096, 14336, 32, 32),
    "llama3.1-8b": _llama(4096, 14336, 32, 32, 8.0),
    "llama3.2-1b": _llama(2048, 8192, 16, 32, 32.0, head_dim=64, tie_word_embeddings=True),
    "llama3.2-3b": _llama(3072, 8192, 28, 24, 32.0, tie_word_embeddings=True),
    "llama3-70b": _llama(8192, 28672, 80, 64),
    "llama3.1-70b": _llama(8192, 28672, 80, 64, 8.0),
    "llama3.3-70b": _llama(8192, 28672, 80, 64, 8.0, eos_token_id=(128001, 128008, 128009)),
}  # fmt: skip
