"""LlamaConfig: every constant of a Llama-3 model, read from and written to a Hugging Face config.json.

Nothing is guessed from a model's name. A key that could change the mathematics and is not understood is an error.
"""

import dataclasses
from collections.abc import Callable, Collection
from typing import Any

from mmed_jax.common.errors import UserError
from mmed_jax.model.config_keys import check_keys, shown

ROPE_TYPES = ("default", "llama3")
MOST = 2**31 - 1  # of any size, position or token id: they are int32 on the devices


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


def from_hf(d: dict, ignore_keys: Collection[str] = (), say: Callable[[str], None] = lambda line: None) -> LlamaConfig:
    """Reads the content of a config.json, of transformers 4.x (rope_theta, rope_scaling) or 5.x (rope_parameters).

    An absent key takes the default that transformers' LlamaConfig gives it.

    Args:
      ignore_keys: keys that are not known here and that the user vouches for: they change nothing.
      say: is given a line, without the place, for the keys that were passed over without being known.

    Raises:
      UserError: not a Llama, a missing key, a wrong type, a rope type other than default and llama3, or a key that
        is not understood and whose value is neither false nor null nor empty; the key and its value are named.
    """
    if not isinstance(d, dict):
        raise UserError(f"must be an object, got {type(d).__name__}", place="config.json")
    if "model_type" not in d:
        raise UserError("model_type is missing (must be 'llama')", place="config.json")
    check_keys(d, {*FIELDS, *SPECIAL}, ignore_keys, say)
    values = {}
    for key, (field, kind, default) in FIELDS.items():
        value = d.get(key)
        if value is None:
            if default is REQUIRED:
                raise UserError(f"{key} is missing", place="config.json")
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
            raise UserError(f"{field}={getattr(cfg, field)}: {rule}", place=where)

    for field in ("vocab_size", "hidden_size", "intermediate_size", "num_layers", "num_heads", "num_kv_heads"):
        need(getattr(cfg, field) >= 1, field, "must be at least 1")
        need(getattr(cfg, field) <= MOST, field, f"must be at most {MOST}")
    # transformers refuses such a config even when head_dim is given.
    need(cfg.hidden_size % cfg.num_heads == 0, "hidden_size", f"must be a multiple of the {cfg.num_heads} heads")
    need(cfg.head_dim >= 2 and cfg.head_dim % 2 == 0, "head_dim", "must be even (rotary embeddings turn pairs)")
    if cfg.num_heads % cfg.num_kv_heads:
        divisors = [k for k in range(1, min(cfg.num_heads, 4096) + 1) if cfg.num_heads % k == 0]
        need(False, "num_kv_heads", f"must divide the {cfg.num_heads} heads: one of {divisors}")
    need(cfg.max_position_embeddings >= 1, "max_position_embeddings", "must be at least 1")
    need(cfg.rms_norm_eps > 0, "rms_norm_eps", "must be above 0")
    need(cfg.rope_theta > 0, "rope_theta", "must be above 0")
    need(cfg.initializer_range >= 0, "initializer_range", "must not be negative")
    s = cfg.rope_scaling
    if s is not None:
        ok = s.factor >= 1 and 0 < s.low_freq_factor < s.high_freq_factor and s.original_max_position_embeddings >= 1
        need(ok, "rope_scaling", "needs factor >= 1, 0 < low_freq_factor < high_freq_factor, original window >= 1")
    return cfg


def _typed(key: str, value: Any, kind: type) -> Any:
    if kind is bool:
        ok = isinstance(value, bool)
    elif kind is int:
        ok = type(value) is int and -MOST <= value <= MOST
    else:
        ok = type(value) in (int, float) and abs(value) < 1e300  # also false for "not a number"
    if not ok:
        name = {bool: "true or false", int: f"an integer of at most {MOST}", float: "a number"}[kind]
        raise UserError(f"{key}={shown(value)}: must be {name}", place="config.json")
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
        given = ", ".join(f"{k}={v:g}" for k, v in thetas.items())
        raise UserError(f"{given} contradict each other", place="config.json")
    # `rope_scaling: null` beside rope_parameters says "see rope_parameters" (transformers 5 reads it so).
    scalings = {scaling for _, scaling in found.values()}
    if len(scalings) > 1:
        raise UserError(
            f"rope_scaling={shown(d['rope_scaling'])} and "
            f"rope_parameters={shown(d['rope_parameters'])} contradict each other",
            place="config.json",
        )
    return next(iter(thetas.values()), DEFAULT_THETA), next(iter(scalings), None)


def _rope_dict(key: str, value: Any) -> tuple[float | None, RopeScaling | None]:
    if not isinstance(value, dict):
        raise UserError(f"{key}={shown(value)}: must be an object or null", place="config.json")
    v = {k: x for k, x in value.items() if x is not None}
    theta = _typed(f"{key}.rope_theta", v.pop("rope_theta"), float) if "rope_theta" in v else None
    kinds = {k: v.pop(k) for k in ("rope_type", "type") if k in v}
    if len(set(map(str, kinds.values()))) > 1:
        raise UserError(f"{key}.rope_type and {key}.type contradict each other: {shown(value)}", place="config.json")
    kind = next(iter(kinds.values()), "default")
    if kind not in ROPE_TYPES:
        raise UserError(
            f"{key}.rope_type={shown(kind)} is not supported; one of {', '.join(ROPE_TYPES)}", place="config.json"
        )
    if v.get("partial_rotary_factor") == 1:
        v.pop("partial_rotary_factor")
    names = [f.name for f in dataclasses.fields(RopeScaling)] if kind == "llama3" else []
    for name in v:
        if name not in names:
            raise UserError(f"{key}.{name}={shown(v[name])} is not known for rope_type '{kind}'", place="config.json")
    for name in names:
        if name not in v:
            raise UserError(f"{key}.{name} is missing (rope_type '{kind}')", place="config.json")
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
        vocab_size=128256,
        hidden_size=hidden,
        intermediate_size=mlp,
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=8,
        head_dim=kw.pop("head_dim", 128),
        rope_scaling=scaling,
        max_position_embeddings=131072 if factor else 8192,
        **kw,
    )


# Constants of the config.json files published with the weights (meta-llama/...); eos of the base models, except 3.3,
# which was published as an instruct model only.
PRESETS: dict[str, LlamaConfig] = {
    # 1.3 M parameters: large enough to memorise the hand-crafted records, small enough for minutes on a CPU.
    "demo": LlamaConfig(
        vocab_size=4096,
        hidden_size=128,
        intermediate_size=384,
        num_layers=4,
        num_heads=4,
        num_kv_heads=2,
        head_dim=32,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        bos_token_id=4080,
        eos_token_id=(4081, 4088, 4089),
        pad_token_id=4084,
        # About 1 / sqrt(hidden_size): with 0.02, right for large models, it learns three times as slowly.
        initializer_range=0.08,
    ),
    "llama3-8b": _llama(4096, 14336, 32, 32),
    "llama3.1-8b": _llama(4096, 14336, 32, 32, 8.0),
    "llama3.2-1b": _llama(2048, 8192, 16, 32, 32.0, head_dim=64, tie_word_embeddings=True),
    "llama3.2-3b": _llama(3072, 8192, 28, 24, 32.0, tie_word_embeddings=True),
    "llama3-70b": _llama(8192, 28672, 80, 64),
    "llama3.1-70b": _llama(8192, 28672, 80, 64, 8.0),
    "llama3.3-70b": _llama(8192, 28672, 80, 64, 8.0, eos_token_id=(128001, 128008, 128009)),
}
