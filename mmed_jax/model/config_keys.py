"""Which keys of a config.json may stand there: those that change nothing, those that do at other values, the unknown.

The lists hold what transformers' PretrainedConfig writes (4.x and 5.x) and what Llama folders on the hub carry besides.
"""

import difflib
import json
from collections.abc import Callable, Collection
from typing import Any

from mmed_jax.common.errors import UserError

# Keys that carry no mathematics of the forward pass: provenance, generation defaults, training switches.
HARMLESS = frozenset(
    """_attn_implementation _attn_implementation_autoset _attn_implementation_internal _auto_class _commit_hash
    _experts_implementation _flash_attn_2_enabled _from_model_config _model_name_or_path _name_or_path add_bos_token
    add_eos_token architectures attn_implementation bad_words_ids base_model_name_or_path begin_suppress_tokens
    bos_token cache_implementation decoder_start_token_id diversity_penalty do_sample dtype early_stopping
    encoder_no_repeat_ngram_size eos_token epsilon_cutoff eta_cutoff experts_implementation
    exponential_decay_length_penalty finetuning_task forced_bos_token_id forced_eos_token_id generation_config
    gradient_checkpointing guidance_scale id2label is_llama_config keys_to_ignore_at_inference label2id length_penalty
    license max_length max_new_tokens max_seq_len max_seq_length max_sequence_length max_time max_window_layers
    min_length min_new_tokens min_p model_max_length model_name name_or_path neftune_noise_alpha no_repeat_ngram_size
    num_beam_groups num_beams num_labels num_return_sequences output_attentions output_hidden_states output_logits
    output_past output_scores pad_token padding_side penalty_alpha prefix problem_type prompt_lookup_num_tokens
    remove_invalid_values renormalize_logits repetition_penalty return_dict return_dict_in_generate sep_token_id
    seq_length suppress_tokens task_specific_params temperature tf_legacy_loss tokenizer_class top_k top_p torch_dtype
    torchscript transformers.js_config transformers_version typical_p unk_token unk_token_id unsloth_fixed
    unsloth_version use_cache use_flash_attention use_flash_attention_2 use_flash_attn""".split()
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
    "hidden_activation": ("silu", "swish", None),
    "is_causal": (True, None),
    "sliding_window": (None, False),
    "use_sliding_window": (False, None),
    "attention_chunk_size": (None, False),
    "quantization_config": (None, {}),
    "per_layer_config": (None, {}, []),
    "scale_attn_weights": (True, None),
    "use_rope": (True, None),
}
# Keys of other families and of remote code, of which false and empty are known to change nothing.
OFF_IS_HARMLESS = frozenset(
    """attn_logit_softcapping auto_map final_logit_softcapping mlp_layer_types mtp_layer_types no_rope_layers qk_norm
    qkv_bias tie_weights use_bias use_mrope use_qk_norm""".split()
)
# The third is what transformers called the first before its release.
ARCHITECTURES = ("LlamaForCausalLM", "LlamaModel", "LLaMAForCausalLM")


# Keys whose right value other keys decide.
_BY_OTHERS = ("architectures", "layer_types", "original_max_position_embeddings")


def check_keys(d: dict, read: Collection[str], ignore_keys: Collection[str], say: Callable[[str], None]) -> None:
    """Refuses a key that changes the mathematics, or could.

    A key that is not known passes when its value is false, null or empty, or when the user vouches for it; `say` is
    given a line for either.

    Args:
      d: content of config.json. read: keys that the caller reads itself. ignore_keys: vouched for.

    Raises:
      UserError: naming the key and its value; also a vouched-for key whose meaning is known and matters.
    """
    matter = {*read, *FIXED, *_BY_OTHERS}
    for key in ignore_keys:
        if key in matter:
            raise UserError(f"ignore_keys={key}: this key is known and decides what the model computes; leave it out")
    passed, vouched = [], []
    for key, value in d.items():
        if key in read or (key in HARMLESS and key != "architectures"):
            continue
        off = value is None or value is False or value in ("", [], {})
        if key in FIXED or key in _BY_OTHERS:
            _check_known(key, value, d)
        elif key in ignore_keys:
            vouched.append(key)
        elif not off:
            raise UserError(
                f"{_name(key)}={shown(value)} is not known and could change the mathematics"
                f"{_similar(key, d, matter)}; if you know that it does not: --ignore_keys={_name(key)} (in "
                "training --config.model.ignore_keys=...)",
                place="config.json",
            )
        elif key not in OFF_IS_HARMLESS:
            passed.append(key)
    if passed:
        say(f"not known here, and false or empty, so passed over: {_names(passed)}")
    if vouched:
        say(f"ignored as you vouch for it, and left out of what is written: {_names(vouched)}")


def _check_known(key: str, value: Any, d: dict) -> None:
    if key == "architectures":
        names = value if isinstance(value, list) else [value]
        if value is not None and (foreign := [n for n in names if n not in ARCHITECTURES]):
            raise UserError(
                f"architectures={shown(names)}: supported are {', '.join(ARCHITECTURES[:2])}, not {shown(foreign[0])}",
                place="config.json",
            )
    elif key == "layer_types":
        count = d.get("num_hidden_layers")
        if value not in (None, []) and not (
            isinstance(value, list) and len(value) == count and all(v == "full_attention" for v in value)
        ):
            raise UserError(
                f'layer_types={shown(value)} is not supported; supported: "full_attention" for each of '
                f"the {shown(count)} layers",
                place="config.json",
            )
    elif key == "original_max_position_embeddings":
        _check_window(value, d)
    elif key == "sliding_window" and d.get("use_sliding_window") is False:
        return  # switched off, whatever its size
    # `True == 1`, so booleans only match booleans.
    elif not any(value == v and isinstance(value, bool) == isinstance(v, bool) for v in FIXED[key]):
        wanted = " or ".join(json.dumps(v) for v in FIXED[key])
        if key == "quantization_config":  # GPTQ, AWQ, 4 bits of bitsandbytes
            wanted += " (download the unquantised model, and train with --config.lora.base=nf4)"
        raise UserError(f"{key}={shown(value)} is not supported; supported: {wanted}", place="config.json")


def _check_window(value: Any, d: dict) -> None:
    """The window before scaling: without scaling it says nothing, with it it must be what the scaling says."""
    scalings = [s for s in (d.get("rope_parameters"), d.get("rope_scaling")) if isinstance(s, dict)]
    for said in (s.get("original_max_position_embeddings") for s in scalings):
        if None not in (value, said) and said != value:
            raise UserError(
                f"original_max_position_embeddings={shown(value)} and {shown(said)} of its rope scaling "
                "contradict each other",
                place="config.json",
            )


def _similar(key: str, d: dict, known: Collection[str]) -> str:
    """A hint at the known name that was meant: a close one which is not there itself."""
    close = difflib.get_close_matches(key, sorted(set(known) - d.keys()), n=1, cutoff=0.75)
    return f", did you mean '{close[0]}'?" if close else ""


def _names(keys: list[str]) -> str:
    more = f" and {len(keys) - 12} more" if len(keys) > 12 else ""
    return ", ".join(map(_name, keys[:12])) + more


def _name(key: str) -> str:
    return key if len(key) <= 60 else key[:57] + "..."


def shown(value: Any) -> str:
    """A value as JSON, cut to 80 characters."""
    text = json.dumps(value, default=str)
    return text if len(text) <= 80 else text[:77] + "..."
