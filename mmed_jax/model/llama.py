"""Llama-3: parameters as one nested dict of stacked arrays, layers run by lax.scan.

Shape suffixes: b batch, t query length, s key length, d hidden, n heads, k kv heads, h head_dim, f intermediate,
v vocabulary. Weights keep the [out, in] orientation and the half-rotation layout of Hugging Face, so that import and
export copy bytes.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from mmed_jax.model import kv_cache, lora_products
from mmed_jax.model.attention import attention as attend
from mmed_jax.model.config import LlamaConfig
from mmed_jax.model.precision import linear, precision
from mmed_jax.model.quantization import LINEAR_MODULES, gather_codes, weight_of
from mmed_jax.model.remat import rematerialise
from mmed_jax.model.rope import apply_rope, rope_tables
from mmed_jax.parallel.gradient_order import can_gather_in_order, gradients_first, linear_in_order, per_group
from mmed_jax.parallel.sharding import constrain
from mmed_jax.parallel.two_step_gather import gather_weight, in_two_steps

Params = dict[str, Any]


def _layout(cfg: LlamaConfig) -> dict[str, Any]:
    """The parameter tree with (shape, logical axis names, initializer) as leaves: the one place that knows it."""
    layers, d, f, v = cfg.num_layers, cfg.hidden_size, cfg.intermediate_size, cfg.vocab_size
    nh, kh = cfg.num_heads * cfg.head_dim, cfg.num_kv_heads * cfg.head_dim

    def linear(out: tuple[int, str], inp: tuple[int, str], bias: bool) -> dict:
        p = {"weight": ((layers, out[0], inp[0]), ("layers", out[1], inp[1]), "normal")}
        if bias:
            # A bias on the hidden axis ("embed") is small and added to an unsharded activation.
            p["bias"] = ((layers, out[0]), ("layers", "norm" if out[1] == "embed" else out[1]), "zeros")
        return p

    norm = {"weight": ((layers, d), ("layers", "norm"), "ones")}
    hidden, heads, kv_heads, mlp = (d, "embed"), (nh, "heads"), (kh, "kv_heads"), (f, "mlp")
    table = ((v, d), ("vocab", "embed"), "normal")
    tree = {
        "embed": {"weight": table},
        "layers": {
            "attn_norm": norm,
            "q": linear(heads, hidden, cfg.attention_bias),
            "k": linear(kv_heads, hidden, cfg.attention_bias),
            "v": linear(kv_heads, hidden, cfg.attention_bias),
            "o": linear(hidden, heads, cfg.attention_bias),
            "mlp_norm": norm,
            "gate": linear(mlp, hidden, cfg.mlp_bias),
            "up": linear(mlp, hidden, cfg.mlp_bias),
            "down": linear(hidden, mlp, cfg.mlp_bias),
        },
        "final_norm": {"weight": ((d,), ("norm",), "ones")},
    }
    if not cfg.tie_word_embeddings:
        tree["head"] = {"weight": table}
    return tree


def _map(fn, cfg: LlamaConfig) -> Any:
    return jax.tree.map(lambda leaf: fn(*leaf), _layout(cfg), is_leaf=lambda x: isinstance(x, tuple))


def abstract_params(cfg: LlamaConfig, dtype: Any = jnp.float32) -> Params:
    """The parameter tree as jax.ShapeDtypeStruct leaves."""
    return _map(lambda shape, axes, init: jax.ShapeDtypeStruct(shape, dtype), cfg)


def logical_axes(cfg: LlamaConfig) -> Any:
    """The parameter tree with a tuple of logical axis names per leaf (see sharding.PARAM_RULES)."""
    return _map(lambda shape, axes, init: axes, cfg)


def init_params(cfg: LlamaConfig, key: jax.Array, dtype: Any = jnp.float32) -> Params:
    """Random parameters: normal(0, initializer_range), norms 1, biases 0. Large models: jit it with out_shardings."""
    leaves, treedef = jax.tree.flatten(_layout(cfg), is_leaf=lambda x: isinstance(x, tuple))

    def leaf(i: int, shape: tuple[int, ...], init: str) -> jax.Array:
        if init != "normal":
            return jnp.full(shape, 1 if init == "ones" else 0, dtype)
        values = jax.random.normal(jax.random.fold_in(key, i), shape, jnp.float32)
        return (values * cfg.initializer_range).astype(dtype)

    return jax.tree.unflatten(treedef, [leaf(i, shape, init) for i, (shape, _, init) in enumerate(leaves)])


def _linear(x: jax.Array, p: Params) -> jax.Array:
    return _linears(x, p)[0]


def _linears(x: jax.Array, *modules: Params, thin_first: bool = True) -> list[jax.Array]:
    """The outputs of modules that share the input x. thin_first: of adapters, see lora_products.adapted_linears."""
    if any(map(lora_products.is_adapted, modules)):
        ys = lora_products.linears(x, modules, [weight_of(p, x.dtype) for p in modules], thin_first=thin_first)
    else:
        ys = [_product(x, p) for p in modules]
    return [y + p["bias"].astype(x.dtype) if "bias" in p else y for y, p in zip(ys, modules, strict=True)]


def _linear_to_hidden(x: jax.Array, p: Params) -> jax.Array:
    """As _linear, of a module whose outputs are the hidden axis, with its backward pass in order where one is said."""
    if "weight" not in p or lora_products.is_adapted(p) or not can_gather_in_order():
        return _linear(x, p)
    y = linear_in_order(x, p["weight"].astype(x.dtype), precision(x.dtype))
    return y + p["bias"].astype(x.dtype) if "bias" in p else y


def _product(x: jax.Array, p: Params) -> jax.Array:
    if "weight_io" in p:  # transposed, for inference on a CPU
        return jnp.einsum("...i,io->...o", x, p["weight_io"].astype(x.dtype), precision=precision(x.dtype))
    return linear(x, weight_of(p, x.dtype))


def _rms_norm(x: jax.Array, weight: jax.Array, eps: float) -> jax.Array:
    """x [B, .., D] by its root mean square and the weight [D], or [G, D] for B rows in G groups."""
    x32 = x.astype(jnp.float32)
    x32 = x32 * jax.lax.rsqrt(jnp.mean(x32 * x32, axis=-1, keepdims=True) + eps)
    if weight.ndim == 2:
        x32 = x32.reshape(weight.shape[0], -1, *x.shape[1:])
        weight = weight.reshape(weight.shape[0], *(1,) * (x.ndim - 1), -1)
    return (x32 * weight.astype(jnp.float32)).astype(x.dtype).reshape(x.shape)


def _layer(x_btd: jax.Array, p: Params, cfg: LlamaConfig, rope: tuple[jax.Array, jax.Array], mix: Any):
    """One decoder layer; `mix(q, k, v) -> (context, extra)` is attention with or without a cache."""
    b, t, _ = x_btd.shape
    p = gather_codes(p, logical_axes(cfg)["layers"])
    if in_two_steps():
        p = _gather_weights(p, cfg, x_btd.dtype)
    x_btd = checkpoint_name(constrain(x_btd, "batch", "length", "act_embed"), "layer_input")
    with jax.named_scope("attention"):
        y = _rms_norm(x_btd, p["attn_norm"]["weight"], cfg.rms_norm_eps)
        qkv = _linears(y, p["q"], p["k"], p["v"], thin_first=False)
        q, k, v = (a.reshape(b, t, -1, cfg.head_dim) for a in qkv)
        q = constrain(apply_rope(q, *rope), "batch", "length", "act_heads", None)
        # Under context parallelism every device sees all keys of its rows.
        k = constrain(apply_rope(k, *rope), "batch", None, "act_kv_heads", None)
        v = constrain(v, "batch", None, "act_kv_heads", None)
        q, k, v = (checkpoint_name(a, "qkv") for a in (q, k, v))
        context, extra = mix(q, k, v)
        # Named "context" by attention, which knows what its backward pass needs.
        context = constrain(context, "batch", "length", "act_heads", None)
        context, p_o = gradients_first(context, {"o": p["o"]})
        attn_out = _linear(context.reshape(b, t, -1), p_o["o"])
        attn_out = checkpoint_name(constrain(attn_out, "batch", "length", "act_embed"), "attn_out")
    x_btd, p_mlp = gradients_first(x_btd + attn_out, {name: p[name] for name in ("gate", "up", "down")})
    with jax.named_scope("mlp"):
        y = _rms_norm(x_btd, p["mlp_norm"]["weight"], cfg.rms_norm_eps)
        gate, up = _linears(y, p_mlp["gate"], p_mlp["up"])
        gate = checkpoint_name(constrain(gate, "batch", "length", "act_mlp"), "mlp")
        up = checkpoint_name(constrain(up, "batch", "length", "act_mlp"), "mlp")
        down = _linear_to_hidden(jax.nn.silu(gate) * up, p_mlp["down"])
    return constrain(x_btd + down, "batch", "length", "act_embed"), extra


def _gather_weights(layer: Params, cfg: LlamaConfig, dtype: Any) -> Params:
    """A layer whose weights, in `dtype`, are whole on every device; quantised ones are codes, gathered already."""
    axes = logical_axes(cfg)["layers"]
    whole = {
        name: {**layer[name], "weight": gather_weight(layer[name]["weight"].astype(dtype), axes[name]["weight"][1:])}
        for name in LINEAR_MODULES
        if "weight" in layer[name]
    }
    return {**layer, **whole}


def _embed(p: Params, tokens_bt: jax.Array, dtype: Any) -> jax.Array:
    """Picks rows of the table; [B, T, D] in `dtype`."""
    # Every device looks up all tokens of its data group in its part of the hidden axis, then parts are swapped for
    # rows, one mesh axis at a time: small all-to-alls. Left alone, the compiler replicates [B, T, D].
    tokens_bt = constrain(tokens_bt, "outer_batch", None)
    # Cast after the look-up, so that the table's gradient is summed in the type of the parameters.
    x = jnp.take(p["weight"], tokens_bt, axis=0).astype(dtype)
    if lora_products.is_adapted(p):
        x = lora_products.adapt_embedding(x, p, tokens_bt)
    x = constrain(x, "outer_batch", None, "embed_parts")
    x = constrain(x, "batch", None, "embed_context")
    return constrain(x, "batch", "length", "act_embed")


def forward(
    params: Params,
    cfg: LlamaConfig,
    tokens_bt: jax.Array,
    *,
    positions_bt: jax.Array | None = None,
    segment_ids_bt: jax.Array | None = None,
    compute_dtype: Any = jnp.float32,
    remat: str = "none",
    attention: str = "auto",
    cache: kv_cache.Cache | None = None,
    slots_bt: jax.Array | None = None,
    visible_bts: jax.Array | None = None,
) -> Any:
    """Runs the decoder up to and including the final norm.

    Args:
      tokens_bt: int32 [B, T]; an id outside the vocabulary gives NaN.
      positions_bt: int32 [B, T], arange(T) by default.
      segment_ids_bt: int32 [B, T], documents of a packed row; tokens see only their own segment. None = one.
      compute_dtype: of matmuls and activations; norms, rotary angles and softmax are float32. Weights are cast inside
        the layer loop.
      remat: policy of mmed_jax.model.remat, for the backward pass.
      attention: backend of mmed_jax.model.attention.
      cache: from `kv_cache.init`. Keys and values of the T tokens are written into it, and queries see its slots. With
        a cache, params["layers"] may be a list of layers, which are then not scanned; so must be the cache's. Matrices
        of such layers may be transposed, as "weight_io" [in, out].
      slots_bt: int32 [B, T], where in the cache each token goes (slots < 0 or >= S are dropped); its position by
        default. Rows are right-padded: a pad's slot is either dropped or written again before any query sees it.
      visible_bts: bool [B, T, S], slots that each token sees; by default those up to its position.

    Returns:
      hidden_btd [B, T, D] in compute_dtype, or (hidden_btd, cache) when a cache is given.

    Raises:
      UserError: unknown remat policy or attention backend, or one that can't do this.
    """
    b, t = tokens_bt.shape
    if positions_bt is None:
        positions_bt = jnp.broadcast_to(jnp.arange(t, dtype=jnp.int32), (b, t))
    with jax.named_scope("embed"):
        x = _embed(params["embed"], tokens_bt, compute_dtype)
        rope = rope_tables(cfg, positions_bt)
    if cache is not None:
        if segment_ids_bt is not None:
            raise ValueError("a cache holds one document a row: no segment ids with a cache")
        if visible_bts is None:
            visible_bts = jnp.arange(kv_cache.slots(cache), dtype=jnp.int32) <= positions_bt[..., None]
        x, cache = _run_cached(params, cfg, x, rope, positions_bt if slots_bt is None else slots_bt, visible_bts, cache)
    else:

        def mix(q, k, v):
            out = attend(
                q,
                k,
                v,
                q_positions=positions_bt,
                kv_positions=positions_bt,
                q_segments=segment_ids_bt,
                kv_segments=segment_ids_bt,
                backend=attention,
            )
            return out, None

        body = rematerialise(lambda x, p: _layer(x, p, cfg, rope, mix), remat)
        norms = {name: {"weight": per_group(params["layers"][name]["weight"], b)} for name in ("attn_norm", "mlp_norm")}
        with jax.named_scope("layers"):
            x, _ = jax.lax.scan(body, x, {**params["layers"], **norms})
    x = final_norm(x, params, cfg)
    return x if cache is None else (x, cache)


def final_norm(x_btd: jax.Array, params: Params, cfg: LlamaConfig) -> jax.Array:
    """The norm behind the last layer, of hidden [B, T, D]."""
    with jax.named_scope("final_norm"):
        return _rms_norm(x_btd, params["final_norm"]["weight"], cfg.rms_norm_eps)


def run_layer(x_btd: jax.Array, layer: Params, cfg: LlamaConfig) -> jax.Array:
    """One decoder layer alone on hidden [B, T, D] of documents that begin at position 0, in the dtype of hidden.

    Args:
      layer: the parameters of one layer, params["layers"] without the layers' axis.
    """
    b, t, _ = x_btd.shape
    positions_bt = jnp.broadcast_to(jnp.arange(t, dtype=jnp.int32), (b, t))

    def mix(q, k, v):
        return attend(q, k, v, q_positions=positions_bt, kv_positions=positions_bt, backend="reference"), None

    return _layer(x_btd, layer, cfg, rope_tables(cfg, positions_bt), mix)[0]


def _run_cached(params, cfg, x, rope, slots_bt, visible_bts, cache):
    """The layers with a key-value cache, which is carried so that it is updated in place: by scan, or one by one."""

    def body(carry, xs):
        x, cache = carry
        p, layer = xs

        def mix(q, k, v):
            new = kv_cache.write(cache, layer, slots_bt, k, v)
            return kv_cache.attention(new, layer, q, visible_bts), new

        x, cache = _layer(x, p, cfg, rope, mix)
        return (x, cache), None

    carry = (x, cache)
    if isinstance(params["layers"], list):
        for layer, p in enumerate(params["layers"]):
            carry, _ = body(carry, (p, layer))
        return carry
    return jax.lax.scan(body, carry, (params["layers"], jnp.arange(cfg.num_layers)))[0]


def head_weight(params: Params, cfg: LlamaConfig) -> jax.Array:
    """The output projection [V, D]: its own, or the embedding when tied. Without its adapter: see `head_adapter`."""
    return params["embed" if cfg.tie_word_embeddings else "head"]["weight"]


def head_adapter(params: Params, hidden: jax.Array) -> lora_products.HeadAdapter | None:
    """What the head's adapter adds to the logits of hidden [..., D], for weighted_nll; None for a head without one."""
    head = params.get("head", {})
    return lora_products.head_adapter(head, hidden) if lora_products.is_adapted(head) else None


def unembed(params: Params, cfg: LlamaConfig, hidden: jax.Array) -> jax.Array:
    """float32 logits [..., V] of hidden [..., D], multiplied in the dtype of hidden and summed in float32."""
    weight = head_weight(params, cfg).astype(hidden.dtype)
    with jax.named_scope("unembed"):
        logits = jnp.einsum(
            "...d,vd->...v", hidden, weight, precision=precision(hidden.dtype), preferred_element_type=jnp.float32
        )
        if adapter := head_adapter(params, hidden):
            logits = adapter.apply(logits)
    return constrain(logits, "batch", "length", "act_vocab") if logits.ndim == 3 else logits
