"""What a run with an adapter starts from: which weights are frozen beneath it, and the first values of the adapter."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ml_collections import ConfigDict

from mmed_jax.checkpoints.run_directory import read_meta, step_folders
from mmed_jax.common.errors import UserError, warn
from mmed_jax.common.places import is_bucket, parse_place

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from mmed_jax.hf.open_model import ModelSource
    from mmed_jax.model.config import LlamaConfig
    from mmed_jax.model.lora import LoraSpec
    from mmed_jax.training.program import Program

# Random weights beneath an adapter lie here in the run directory, a Hugging Face folder.
BASE = "base"


def saved_adapter(run_dir: str | Path) -> dict[str, Any] | None:
    """{"spec", "base"} of the newest readable checkpoint of a run; None where there is no checkpoint or no adapter."""
    path = parse_place(run_dir, "config.run_dir")
    for step in sorted(step_folders(path), reverse=True):
        try:
            return read_meta(path, step).get("lora")
        except (OSError, ValueError):
            continue
    return None


def open_frozen(config: ConfigDict, source: "ModelSource | None", base_dir: str = "") -> "ModelSource | None":
    """The weights beneath the adapter; reads small files only, and what makes up their fingerprint.

    A run that has checkpoints goes on upon the weights that these name and upon no others. One that begins takes
    config.init_from, or of a model with an adapter the weights beneath that.

    Args:
      source: what config.init_from names (training.setup.open_init). base_dir: --base, where the weights lie now.

    Returns:
      None where all weights are trained, and where they are random and not yet written (`write_random_base`).

    Raises:
      UserError: they are not there, or are others than the checkpoints' fingerprint says; config.init_from holds an
        adapter that this run cannot go on with.
    """
    if not config.lora.rank:
        if base_dir:
            raise UserError(f"--base={base_dir}: config.lora.rank is 0, the run has no weights beneath an adapter")
        return None
    from mmed_jax.hf.base_model import open_base

    if saved := saved_adapter(config.run_dir):
        return open_base(saved["base"], base_dir, parse_place(config.run_dir))
    if source is not None and source.lora is not None:
        return source.base
    if base_dir:
        raise UserError(
            f"--base={base_dir}: config.init_from={config.init_from or '(random weights)'} holds no adapter; name the "
            "weights there"
        )
    return source


def run_spec(config: ConfigDict, cfg: "LlamaConfig", source: "ModelSource | None") -> "LoraSpec | None":
    """The adapter of the run, None where all weights are trained; goes with what config.init_from holds.

    Raises:
      UserError: config.lora names what the model has not; or a run that begins would lose or change the adapter that
        config.init_from holds: what differs, and what to do.
    """
    spec = None
    if config.lora.rank:
        from mmed_jax.model.lora import lora_spec

        spec = lora_spec(config.lora, cfg)
    if source is not None and source.lora is not None and not step_folders(config.run_dir):
        _check_start(config, source, spec)
    return spec


def _check_start(config: ConfigDict, source: "ModelSource", spec: "LoraSpec | None") -> None:
    assert source.lora is not None
    from mmed_jax.hf.lora_model import LoraModel

    start, merged = config.init_from, f"python -m mmed_jax.export --model={config.init_from} --output=DIR"
    if spec is None:
        raise UserError(
            f"config.init_from={start} is an adapter on other weights, and lora.rank=0 trains all weights: merge it "
            f"first (`{merged}`) and start from that folder, or go on with the adapter by --config.lora.rank="
            f"{source.lora.rank}"
        )
    if config.lora.start == "fresh":
        raise UserError(
            f"config.lora.start=fresh: config.init_from={start} holds an adapter, and a new one is put on whole weights"
            f" only: merge it first (`{merged}`) and start from that folder, or set --config.lora.start=continue"
        )
    if differences := _differences(source.lora, spec):
        raise UserError(
            f"config.init_from={start} holds another adapter: {'; '.join(differences)}. Set these as they are there to "
            f"train it on, or merge it first (`{merged}`) and start a new one from that folder"
        )
    held = source.record.get("quantization") if isinstance(source, LoraModel) else None  # None: by another program
    if held not in (None, config.lora.base):
        warn(
            f"config.lora.base={config.lora.base}: the adapter of {start} was trained on its base held as '{held}', so "
            f"that it starts on weights it did not see; --config.lora.base={held} goes on where it stopped"
        )


def _differences(there: "LoraSpec", now: "LoraSpec") -> list[str]:
    """What of two adapters is not the same, dropout apart: it is part of training, not of the adapter."""
    lines = []
    for name in ("rank", "alpha", "rslora", "dora"):
        old, new = getattr(there, name), getattr(now, name)
        if old != new:
            lines.append(f"lora.{name} is {old} there, {new} here")
    old, new = ({name: rest for name, *rest in spec.modules} for spec in (there, now))
    if old.keys() != new.keys():
        lines.append(f"lora.targets is {','.join(old)} there, {','.join(new)} here")
    elif not lines:
        for name in old:
            for key, a, b in zip(("rank", "alpha"), old[name], new[name], strict=True):
                if a != b:
                    lines.append(
                        f"lora.{key}_pattern or lora.layers: the {key} of {name} is {_short(a)} there, {_short(b)} here"
                    )
    return lines


def _short(values: tuple[float, ...]) -> str:
    return f"{values[0]:g} in all layers" if len(set(values)) == 1 else ", ".join(f"{v:g}" for v in values)


def write_random_base(
    config: ConfigDict, cfg: "LlamaConfig", tok: "PreTrainedTokenizerFast", mesh: Any
) -> "ModelSource":
    """Writes the random weights of config.seed, float32, as a Hugging Face folder into the run directory and opens it.

    So that everything that reads the adapter, PEFT too, finds the weights it belongs to. Every process calls this, when
    the run directory is locked.

    Raises:
      UserError, WorkError: see hf.save.save_pretrained.
    """
    import jax
    import jax.numpy as jnp

    from mmed_jax.hf.open_model import open_model
    from mmed_jax.hf.save import save_pretrained
    from mmed_jax.model import quantized_base
    from mmed_jax.training.state import random_params

    abstract = {"params": quantized_base.abstract_base(cfg, "compute", jnp.float32, mesh)}
    run_dir = parse_place(config.run_dir)
    if is_bucket(run_dir):
        raise UserError(
            f"config.run_dir={run_dir}: random weights beneath an adapter are written to a folder of a file system "
            "only; name one, or weights with --config.init_from"
        )
    folder = run_dir.resolve() / BASE
    info = {"what": "random weights beneath an adapter", "seed": config.seed}
    with jax.set_mesh(mesh):
        save_pretrained(
            folder,
            random_params(cfg, config.seed, abstract),
            cfg,
            tok,
            dtype="float32",
            info=info,
            overwrite=True,
        )
    return open_model(folder)


def load_frozen(frozen: "ModelSource", program: "Program", config: ConfigDict) -> dict[str, Any]:
    """The frozen weights, placed and quantised as the program takes them; every process calls this."""
    import jax

    shardings = jax.tree.map(lambda x: x.sharding, program.base)
    return frozen.load_base(config.lora.base, config.compute_dtype, shardings)


def adapter_meta(spec: "LoraSpec", frozen: "ModelSource", config: ConfigDict) -> dict[str, Any]:
    """What every checkpoint of the run says of the adapter and of the weights beneath it: {"spec", "base"}.

    `frozen`: opened and loaded, so that the step of a run is known.
    """
    from mmed_jax.hf.base_model import record_base

    return {"spec": spec.to_json(), "base": record_base(frozen, config.lora.base, config.compute_dtype)}


def describe_adapter(config: ConfigDict, cfg: "LlamaConfig", spec: "LoraSpec") -> dict[str, str]:
    """Lines of the banner: the adapter, and what is frozen beneath it."""
    import math

    import jax

    from mmed_jax.model.config import num_params
    from mmed_jax.model.lora import num_adapter_params
    from mmed_jax.model.quantized_base import abstract_base

    trained, total = num_adapter_params(spec, cfg), num_params(cfg)
    kinds = [k for k in ("rslora", "dora") if getattr(spec, k)]
    parts = [
        " ".join([f"rank {spec.rank}, alpha {spec.alpha:g}", *kinds]),
        f"dropout {spec.dropout:g}",
        f"on {','.join(name for name, _, _ in spec.modules)}",
    ]
    layers = {i for name, ranks, _ in spec.modules if name not in ("head", "embed") for i, r in enumerate(ranks) if r}
    if layers and len(layers) < cfg.num_layers:
        parts.append(f"in {len(layers)} of {cfg.num_layers} layers")
    if config.lora.rank_pattern or config.lora.alpha_pattern:
        parts.append("with patterns")
    parts.append(f"{trained:,} trained, {trained / total:.2%} of {total:,}")
    leaves = jax.tree.leaves(abstract_base(cfg, config.lora.base, jax.numpy.dtype(config.compute_dtype)))
    size = sum(math.prod(x.shape) * x.dtype.itemsize for x in leaves)
    held = (
        config.compute_dtype
        if config.lora.base == "compute"
        else f"{config.lora.base}, the rest {config.compute_dtype}"
    )
    return {"adapter": ", ".join(parts), "base": f"frozen, {held}, {size / 2**30:.2f} GiB"}
