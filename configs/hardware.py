"""Where a recipe runs, apart from what it trains: precision, rematerialisation, mesh, checkpoints."""

from ml_collections import ConfigDict

# Open weights by variant: the folder a user downloads them to, and the smallest hardware the defaults are meant for.
# Memory: full fine-tuning with float32 weights and both AdamW moments takes 12 bytes a parameter, over all chips,
# plus gradients (4) and activations: 16 bytes x 8.03e9 = 128 GB for the 8B.
MODELS = {
    "1b": ("models/Llama-3.2-1B", "one 80 GB GPU, or v5e-8 / v6e-4 and larger"),
    "3b": ("models/Llama-3.2-3B", "two 80 GB GPUs, or v5e-16 / v6e-8 / v5p-8 and larger"),
    "8b": ("models/Meta-Llama-3-8B", "4 x 80 GB GPUs, or v5e-32 / v6e-16 / v4-16 / v5p-8 and larger"),
    "70b": ("models/Meta-Llama-3-70B", "32 x 80 GB GPUs, or v6e-128 / v5p-64 and larger"),
}
# Their architectures (mmed_jax.model.config.PRESETS), by which mmed_jax.plan plans before the weights are there.
PRESETS = {"1b": "llama3.2-1b", "3b": "llama3.2-3b", "8b": "llama3-8b", "70b": "llama3-70b"}
PRESETS |= {f"{size}-{kind}": name for size, name in PRESETS.items() for kind in ("lora", "qlora")}
PRESETS["8b-lora-paper"] = PRESETS["8b"]


def cpu(c: ConfigDict) -> None:
    """A laptop: float32, nothing recomputed, checkpoints small enough to be frequent."""
    c.platform = "any"
    c.compute_dtype = "float32"
    c.remat = "none"
    c.checkpoint.every_minutes = 2.0


def accelerator(c: ConfigDict) -> None:
    """A TPU or GPU mesh of any size: fully sharded, bfloat16 matmuls over float32 master weights, full remat."""
    c.platform = "accelerator"
    c.compute_dtype = "bfloat16"
    c.remat = "full"
    c.mesh.fsdp = -1
    c.checkpoint.every_minutes = 30.0
    c.checkpoint.keep_last = 2


def lora(c: ConfigDict, size: str, *, quantised: bool = False) -> None:
    """An adapter of rank 16 on every linear module of the frozen weights, which stay in bfloat16 or become 4 bits.

    Each device works on one row at a time, however many there are, so that an 8B fits one 80 GB GPU or eight chips of
    16 GB, in 4 bits also a 70B; where there is room, more rows at a time are faster (mmed_jax.plan --search). Without
    moments and gradients of the weights there is room to compute next to nothing twice, but for the 70B. Its
    checkpoints are a hundredth of the model's, so that they may be frequent.
    """
    c.grad_accum = 0
    c.micro_rows = 1
    c.remat = "full" if size == "70b" else "minimal_ctx"
    c.lora.rank = 16
    c.lora.base = "nf4" if quantised else "compute"
    c.checkpoint.every_minutes = 5.0
