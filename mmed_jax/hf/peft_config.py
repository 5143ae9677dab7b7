"""adapter_config.json of PEFT <-> LoraSpec.

Which modules have an adapter, and of what rank and scale, is said there by names, suffixes and regular expressions that
PEFT matches against the model's modules (peft 0.21: tuners/tuners_utils.py, check_target_module_exists; utils/other.py,
get_pattern_key). Reading follows those rules module by module. Writing says the same in the 24 keys that every release
since 0.10 has, so that releases old and new read it alike. What would change the numbers and is not computed here is
refused.
"""

import functools
import math
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from mmed_jax.common.errors import UserError, nearest, warn
from mmed_jax.hf.load import read_json
from mmed_jax.hf.mapping import LAYER_MODULES, MODULES, group_names, some
from mmed_jax.hf.safetensors import shown
from mmed_jax.model.config import LlamaConfig
from mmed_jax.model.lora import LINEAR_TARGETS, TARGETS, LoraSpec

CONFIG_FILE = "adapter_config.json"
HF_NAMES = {t: LAYER_MODULES[t] if t in LINEAR_TARGETS else MODULES[t] for t in TARGETS}
_LARGEST_RANK = 1 << 16
# How A and B are drawn before training; the base stays as it is, so that the stored tensors mean what they say.
_HARMLESS_INITS = ("gaussian", "eva", "orthogonal", "mica")
# Keys that change no number of a trained adapter: names, versions, how it was initialised, where it runs.
_NO_NUMBERS = (
    "auto_mapping",
    "base_model_name_or_path",
    "ensure_weight_tying",
    "eva_config",
    "inference_mode",
    "megatron_core",
    "peft_version",
    "qalora_group_size",
    "revision",
    "velora_config",
)
_READ = (
    "alpha_pattern",
    "bias",
    "exclude_modules",
    "init_lora_weights",
    "layers_pattern",
    "layers_to_transform",
    "lora_alpha",
    "lora_dropout",
    "peft_type",
    "r",
    "rank_pattern",
    "target_modules",
    "task_type",
    "use_dora",
    "use_rslora",
)
_REASONS = {
    "modules_to_save": "fully trained copies of modules are not read",
    "trainable_token_indices": "trained rows of the embedding are not read",
    "lora_bias": "a bias of B is not read",
    "fan_in_fan_out": "is for models of Conv1D layers",
    "layer_replication": "the layers of a Llama are not repeated here",
}


class Module(NamedTuple):
    """A module that can have an adapter: our target, its layer (None for head and embed), and its name in HF's tree."""

    target: str
    layer: int | None
    name: str


def modules_of(cfg: LlamaConfig) -> list[Module]:
    """Every module that can have an adapter, tied tables included."""
    linear = [
        Module(t, i, f"model.layers.{i}.{LAYER_MODULES[t]}") for i in range(cfg.num_layers) for t in LINEAR_TARGETS
    ]
    return [Module("embed", None, MODULES["embed"]), *linear, Module("head", None, MODULES["head"])]


def read_adapter_config(folder: Path, cfg: LlamaConfig) -> LoraSpec:
    """The spec of the adapter in `folder`, for a model of `cfg`.

    Raises:
      UserError: no such file, no LoRA, a value that is none, modules that the model has not, or anything that changes
        the numbers and is not computed here; one line with file, key and value.
    """
    return spec_of(read_config_file(folder), cfg, folder / CONFIG_FILE)


def read_config_file(folder: Path) -> dict[str, Any]:
    """The content of adapter_config.json. Raises UserError: not there, or not JSON."""
    if not (folder / CONFIG_FILE).is_file():
        raise UserError(f"adapter: {folder} has no {CONFIG_FILE}; give the folder that PEFT's save_pretrained made")
    return read_json(folder / CONFIG_FILE)


def spec_of(config: Mapping[str, Any], cfg: LlamaConfig, place: object = CONFIG_FILE) -> LoraSpec:
    """The spec that the content of an adapter_config.json says. Raises UserError as `read_adapter_config`."""
    try:
        _check_kind(config)
        _check_switches(config)
        rank = _number(config, "r", config.get("r"), whole=True)
        alpha = float(_number(config, "lora_alpha", config.get("lora_alpha")))
        chosen = _targeted(config, cfg)
        ranks = _by_pattern(config, "rank_pattern", rank, chosen, whole=True)
        alphas = _by_pattern(config, "alpha_pattern", alpha, chosen)
    except UserError as e:
        raise e.at(place) from None
    modules = []
    for target in TARGETS:
        own = {m.layer: m for m in chosen if m.target == target}
        layers = range(cfg.num_layers) if target in LINEAR_TARGETS else [None]
        if own:
            in_order = [own.get(layer) for layer in layers]
            by_layer = tuple(int(ranks[m]) if m else 0 for m in in_order)
            modules.append((target, by_layer, tuple(float(alphas[m]) if m else 0.0 for m in in_order)))
    switches = {"rslora": bool(config.get("use_rslora")), "dora": bool(config.get("use_dora"))}
    return LoraSpec(int(rank), alpha, tuple(modules), **switches, dropout=float(config.get("lora_dropout") or 0.0))


def config_of(spec: LoraSpec, base_name: str) -> dict[str, Any]:
    """The content of an adapter_config.json that says `spec`, in the 24 keys of peft 0.10, sorted.

    Patterns hold what differs from the defaults alone, and no module is matched by two different keys: the first one
    counts, PEFT sorts keys when it saves, and early releases look the first key of either pattern up in both.

    Args:
      base_name: of the model it was trained on, on the hub or a folder.
    """
    targets, layers = _target_modules(spec)
    pairs = {key: pair for key, pair in _pattern_keys(spec).items() if pair != (spec.rank, spec.alpha)}
    return {
        "alpha_pattern": {key: _plain(a) for key, (_, a) in pairs.items() if a != spec.alpha},
        "auto_mapping": None,
        "base_model_name_or_path": base_name,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "layer_replication": None,
        "layers_pattern": None,
        "layers_to_transform": layers,
        "loftq_config": {},
        "lora_alpha": _plain(spec.alpha),
        "lora_dropout": spec.dropout,
        "megatron_config": None,
        "megatron_core": "megatron.core",
        "modules_to_save": None,
        "peft_type": "LORA",
        "r": spec.rank,
        "rank_pattern": {key: r for key, (r, _) in pairs.items() if r != spec.rank},
        "revision": None,
        "target_modules": targets,
        "task_type": "CAUSAL_LM",
        "use_dora": spec.dora,
        "use_rslora": spec.rslora,
    }


def _target_modules(spec: LoraSpec) -> tuple[list[str], list[int] | None]:
    """(target_modules, layers_to_transform): suffixes, or full names where layers differ between targets."""
    stacked = {t: [i for i, r in enumerate(ranks) if r] for t, ranks, _ in spec.modules if t in LINEAR_TARGETS}
    count = max((len(ranks) for t, ranks, _ in spec.modules if t in LINEAR_TARGETS), default=0)
    tables = {t: HF_NAMES[t].rpartition(".")[2] for t, _, _ in spec.modules if t not in LINEAR_TARGETS}
    if all(layers == list(range(count)) for layers in stacked.values()):
        return sorted([*(_suffix(t) for t in stacked), *tables.values()]), None
    # With layers_to_transform a name counts that stands there whole, or one with a layer's number in it.
    whole = [HF_NAMES[t] for t in tables]
    if len({tuple(layers) for layers in stacked.values()}) == 1:
        return sorted([*(_suffix(t) for t in stacked), *whole]), next(iter(stacked.values()))
    return sorted([*(_layer_key(t, i, "model.") for t, layers in stacked.items() for i in layers), *whole]), None


def _pattern_keys(spec: LoraSpec) -> dict[str, tuple[int, float]]:
    """{key: (rank, alpha)} that covers each module once: a suffix where all layers agree, else layer by layer."""
    keys: dict[str, tuple[int, float]] = {}
    for target, ranks, alphas in spec.modules:
        by_layer = {i: (r, a) for i, (r, a) in enumerate(zip(ranks, alphas, strict=True)) if r}
        if len(set(by_layer.values())) == 1:
            keys[_suffix(target)] = next(iter(by_layer.values()))
        else:
            keys |= {_layer_key(target, i): pair for i, pair in by_layer.items()}
    return keys


def _suffix(target: str) -> str:
    return HF_NAMES[target].rpartition(".")[2]


def _layer_key(target: str, layer: int, before: str = "") -> str:
    return f"{before}layers.{layer}.{LAYER_MODULES[target]}"


def _plain(number: float) -> int | float:
    return int(number) if float(number).is_integer() else number


def _check_kind(config: Mapping[str, Any]) -> None:
    if "peft_type" not in config:
        raise UserError("peft_type is missing (must be 'LORA')")
    if config["peft_type"] != "LORA":
        raise UserError(f"peft_type={shown(config['peft_type'])}: only LORA is read")
    if config.get("task_type") not in (None, "CAUSAL_LM"):
        raise UserError(f"task_type={shown(config['task_type'])}: only CAUSAL_LM is read")
    if config.get("bias", "none") != "none":
        raise UserError(f"bias={shown(config['bias'])}: only none is read; trained biases are not")
    init = config.get("init_lora_weights", True)
    if not (isinstance(init, bool) or init is None or init in _HARMLESS_INITS):
        raise UserError(
            f"init_lora_weights={shown(init)}: A and B are then meant for a base whose weights were changed before "
            "training; save it with peft's path_initial_model_for_weight_conversion, which makes a plain LoRA of it"
        )


def _check_switches(config: Mapping[str, Any]) -> None:
    """Refuses everything else that is set and not understood."""
    for key, value in config.items():
        if key in _READ or key in _NO_NUMBERS or value is None or value is False or value in ("", [], {}):
            continue
        if key in ("loftq_config", "corda_config", "lora_ga_config"):  # only with an init that is refused already
            continue
        raise UserError(f"{key}={shown(value)}: {_REASONS.get(key, 'is not computed here')}")
    for key in ("use_rslora", "use_dora"):
        if not isinstance(config.get(key) or False, bool):
            raise UserError(f"{key}={shown(config[key])}: must be true or false")
    dropout = config.get("lora_dropout") or 0.0
    if isinstance(dropout, bool) or not isinstance(dropout, int | float) or not 0 <= dropout < 1:
        raise UserError(f"lora_dropout={shown(dropout)}: must be from 0 to below 1")


def _number(config: Mapping[str, Any], key: str, value: Any, whole: bool = False) -> float:
    if value is None and key in ("r", "lora_alpha"):
        if key not in config:
            raise UserError(f"{key} is missing")
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if not is_number or value <= 0 or (whole and (value != int(value) or value > _LARGEST_RANK)):
        effect = "; an adapter of 0 has no effect" if value == 0 and is_number else ""
        raise UserError(f"{key}={shown(value)}: must be {'a whole number' if whole else 'a number'} above 0{effect}")
    return value


def _targeted(config: Mapping[str, Any], cfg: LlamaConfig) -> list[Module]:
    """The modules with an adapter, in the order of the model."""
    candidates, others = modules_of(cfg), _other_modules(cfg)
    matches, patterns = _target_rule(config)
    for pattern, matches_it in patterns.items():
        if not any(matches_it(name) for name in (*(m.name for m in candidates), *others)):
            names = sorted({m.name.rpartition(".")[2] for m in candidates})
            raise UserError(f"target_modules: '{shown(pattern)}' is no module of this model{nearest(pattern, names)}")
    excluded = _name_rule(config, "exclude_modules")
    layers = _layer_rule(config, cfg)

    def is_targeted(name: str) -> bool:
        return not excluded(name) and matches(name, layers)

    if wrong := [name for name in others if is_targeted(name)]:
        raise UserError(f"target_modules: {some(wrong)} can't have an adapter; only linear layers and tables can")
    chosen = [m for m in candidates if is_targeted(m.name)]
    if not chosen:
        raise UserError("target_modules, exclude_modules, layers_to_transform: together they name no module")
    if cfg.tie_word_embeddings and (tied := [m.name for m in chosen if m.layer is None]):
        raise UserError(
            f"target_modules: {some(tied)}: embedding and head are one matrix in this model (tie_word_embeddings); an "
            "adapter of one of them can't be merged without changing the other"
        )
    return chosen


def _other_modules(cfg: LlamaConfig) -> list[str]:
    """Names of the modules that can't have an adapter."""
    parts = ("self_attn", "mlp", "mlp.act_fn", "input_layernorm", "post_attention_layernorm")
    layers = [f"model.layers.{i}" for i in range(cfg.num_layers)]
    return [
        "model",
        "model.layers",
        "model.norm",
        "model.rotary_emb",
        *layers,
        *(f"{x}.{p}" for x in layers for p in parts),
    ]


def _target_rule(config: Mapping[str, Any]) -> tuple[Callable[..., bool], dict[str, Callable[[str], bool]]]:
    """(whether a name is a target, given what says of its layer), {each pattern: whether a name is meant by it}."""
    targets = config.get("target_modules")
    if targets is None:
        targets = ["q_proj", "v_proj"]  # PEFT's own for a Llama
    if isinstance(targets, str):
        if config.get("layers_to_transform") is not None or config.get("layers_pattern"):
            raise UserError("layers_to_transform: goes with a list of target_modules, not with a regular expression")
        linear = {f".{_suffix(t)}" for t in LINEAR_TARGETS}
        if targets.lower() == "all-linear":
            return (lambda name, layers: any(name.endswith(s) for s in linear)), {}
        expression = _compiled("target_modules", targets)
        return (lambda name, layers: expression.fullmatch(name) is not None), {}
    names = _texts("target_modules", targets)
    if not names:
        raise UserError("target_modules=[]: names no module")

    def matches(name: str, layers: Callable[[str], bool]) -> bool:
        return name in names or (any(_is_called(n, name) for n in names) and layers(name))

    return matches, {n: functools.partial(_is_called, n) for n in names}


def _is_called(ending: str, name: str) -> bool:
    """Whether a module's name is `ending`, or ends in it behind a dot."""
    return name == ending or name.endswith(f".{ending}")


def _name_rule(config: Mapping[str, Any], key: str) -> Callable[[str], bool]:
    value = config.get(key)
    if not value:
        return lambda name: False
    if isinstance(value, str):
        expression = _compiled(key, value)
        return lambda name: expression.fullmatch(name) is not None
    names = _texts(key, value)
    return lambda name: any(_is_called(n, name) for n in names)


def _layer_rule(config: Mapping[str, Any], cfg: LlamaConfig) -> Callable[[str], bool]:
    """Whether layers_to_transform has the layer of a name."""
    layers, patterns = config.get("layers_to_transform"), config.get("layers_pattern") or []
    if patterns and layers is None:
        raise UserError("layers_pattern: goes with layers_to_transform, which is missing")
    if layers is None or layers == []:
        return lambda name: True
    layers = layers if isinstance(layers, list) else [layers]
    for layer in layers:
        if type(layer) is not int or not 0 <= layer < cfg.num_layers:
            raise UserError(f"layers_to_transform: {shown(layer)}: the model has layers 0 to {cfg.num_layers - 1}")
    patterns = [patterns] if isinstance(patterns, str) else _texts("layers_pattern", patterns)
    expressions = [_compiled("layers_pattern", rf"(?:^|.*?\.){p}\.(?P<idx>\d+)\.", p) for p in patterns]
    expressions = expressions or [re.compile(r".*?\.[^.]*\.(?P<idx>\d+)\.")]

    def in_layers(name: str) -> bool:
        found = next((m for e in expressions if (m := e.match(name))), None)
        return found is not None and int(found["idx"]) in layers

    return in_layers


def _by_pattern(
    config: Mapping[str, Any], key: str, default: float, chosen: Iterable[Module], *, whole: bool = False
) -> dict[Module, float]:
    """{module: its value}: of the first key of the pattern that its name ends in, else the default."""
    pattern = config.get(key) or {}
    if not isinstance(pattern, dict):
        raise UserError(f"{key}={shown(pattern)}: must be an object of names and numbers")
    rules = {}
    for name, value in pattern.items():
        _number(config, f"{key}['{shown(name)}']", value, whole)
        rules[name] = _compiled(key, rf"(.*\.)?({name})$", name)
    values, used = {}, set()
    for module in chosen:
        keys = [n for n, rule in rules.items() if rule.match(module.name)]
        used.update(keys)
        values[module] = pattern[keys[0]] if keys else default
    if unused := [n for n in rules if n not in used]:
        warn(f"{CONFIG_FILE}: {key} names {group_names(unused)}: no module with an adapter is called so")
    return values


def _texts(key: str, value: Any) -> list[str]:
    if not isinstance(value, list) or not all(isinstance(v, str) and v for v in value):
        raise UserError(f"{key}={shown(value)}: must be a list of names, or a regular expression")
    return value


def _compiled(key: str, expression: str, given: str = "") -> re.Pattern:
    try:
        return re.compile(expression)
    except re.error as e:
        raise UserError(f"{key}: '{shown(given or expression)}' is no regular expression ({e})") from None
