"""What the backward pass keeps of each layer and what it computes again, by name.

Named values (jax.ad_checkpoint.checkpoint_name) of a layer: layer_input, qkv (after rotation), context (output of
attention before the o projection), attn_out (after it), mlp (gate and up), lora_h (what adapters make of their inputs,
[tokens, rank]).
"""

from collections.abc import Callable

import jax

from mmed_jax.common.errors import UserError, nearest

# policy -> names that are kept; everything else is computed again. More memory and less time from top to bottom.
KEPT: dict[str, tuple[str, ...]] = {
    "full": (),
    "qkv": ("qkv", "lora_h"),
    "minimal": ("qkv", "attn_out", "mlp", "lora_h"),
    "minimal_ctx": ("qkv", "context", "attn_out", "mlp", "lora_h"),
}
# "offload": the layer inputs, all that "full" keeps on the device, go to host memory instead.
OFFLOADED = ("layer_input",)
POLICIES = (*KEPT, "offload", "none")


def check_remat(name: str, device: jax.Device | None = None) -> None:
    """Checks a policy's name and, given a device that will run it, that the device can.

    Raises:
      UserError: unknown name, or "offload" on a device that has no pinned host memory for it.
    """
    if name not in POLICIES:
        raise UserError(f"remat='{name}': no such policy{nearest(name, POLICIES)}")
    if name == "offload" and device is not None:
        kinds = {m.kind for m in device.addressable_memories()}
        if "pinned_host" not in kinds:
            raise UserError(
                f"remat='offload' needs pinned host memory, which this device ({device.platform}) does not have; "
                "nearest: remat='full'"
            )


def rematerialise(body: Callable, name: str) -> Callable:
    """Wraps a layer (the body of lax.scan) in jax.checkpoint with the named policy."""
    check_remat(name)
    policies = jax.checkpoint_policies
    if name == "none":
        return body
    if name == "offload":
        policy = policies.save_and_offload_only_these_names(
            names_which_can_be_saved=[],
            names_which_can_be_offloaded=list(OFFLOADED),
            offload_src="device",
            offload_dst="pinned_host",
        )
    else:
        policy = policies.save_only_these_names(*KEPT[name])
    # Inside scan nothing can be merged with the forward pass, so the barrier against it is not needed.
    return jax.checkpoint(body, policy=policy, prevent_cse=False)
