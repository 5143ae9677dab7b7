"""The training step as one jitted program, built here and nowhere else: what `train` runs is what `plan` compiles."""

from dataclasses import dataclass
from typing import Any

import jax
import optax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from mmed_jax.config.values import batch_rows
from mmed_jax.data.batch import FIELDS
from mmed_jax.model import quantized_base
from mmed_jax.model.attention import resolve_backend
from mmed_jax.model.config import LlamaConfig
from mmed_jax.model.lora import LoraSpec, lora_spec
from mmed_jax.parallel import sharding
from mmed_jax.parallel.chips import tpu_of
from mmed_jax.parallel.two_step_gather import line_length
from mmed_jax.parallel.xla_flags import compiler_options, scatters_gradients
from mmed_jax.training import optim, step
from mmed_jax.training import state as placement
from mmed_jax.training.answers import make_answer_step


@dataclass(frozen=True)
class Program:
    """The steps of a run on a mesh.

    state: the training state as jax.ShapeDtypeStruct leaves with their shardings; batch: a global batch likewise; base:
    the frozen weights likewise, {} where all are trained. spec: of the adapter that is trained; None = all weights.
    train_step(state, batch, base) -> (state, metrics), with the state donated; eval_step(params, batch, base) -> sums
    and nats; answer_step(params, batch, stops, base) -> answers (training/answers.py), for rows of any length.
    """

    mesh: Mesh
    tx: optax.GradientTransformation
    schedule: optax.Schedule
    options: step.StepOptions
    state: dict[str, Any]
    batch: dict[str, jax.ShapeDtypeStruct]
    base: dict[str, Any]
    spec: LoraSpec | None
    train_step: Any
    eval_step: Any
    answer_step: Any
    compiler_options: dict[str, str | bool]

    def lower(self) -> jax.stages.Lowered:
        """The training step for the mesh's platform, which need not be this machine's."""
        platform = self.mesh.devices.flat[0].platform
        with jax.set_mesh(self.mesh):
            traced = self.train_step.trace(self.state, self.batch, self.base)
            return traced.lower(lowering_platforms=("cuda" if platform == "gpu" else platform,))


def attention_backend(config: ConfigDict, cfg: LlamaConfig, platform: str, context: int) -> str:
    """The attention backend of a run on a platform ("cpu", "gpu", "tpu") with a mesh axis `context` of that size.

    Raises:
      UserError: config.attention can't be had there.
    """
    return resolve_backend(
        config.attention,
        platform,
        config.data.packing,
        seq_len=config.data.seq_len,
        context=context,
        head_dim=cfg.head_dim,
        dtype=config.compute_dtype,
    )


def train_program(config: ConfigDict, cfg: LlamaConfig, mesh: Mesh, *, steps: int, attention: str) -> Program:
    """The program of a run.

    Args:
      steps: length of the run, for the learning-rate schedule. attention: a backend, resolved.

    Raises:
      UserError: config.lora names what the model does not have, or a base that it or the mesh cannot hold.
    """
    spec = lora_spec(config.lora, cfg)
    tx, schedule = optim.make_optimizer(config.optim, steps, b_lr_ratio=config.lora.b_lr_ratio)
    state = placement.abstract_state(cfg, tx, mesh, config.param_dtype, spec)
    base: dict[str, Any] = {}
    if spec is not None:
        quantized_base.check_base(cfg, config.lora.base, dict(mesh.shape), config.remat)
        base = quantized_base.abstract_base(cfg, config.lora.base, jax.numpy.dtype(config.compute_dtype), mesh)
    chip = tpu_of(mesh.devices.flat[0].device_kind)
    # On several slices, where the compiler lets a layer's sums run into the next one, its own order hides more.
    in_parts = mesh.shape["fsdp"] * mesh.shape["context"] > 1 and mesh.shape["data"] == 1
    options = step.StepOptions(
        compute_dtype=config.compute_dtype,
        remat=config.remat,
        attention=attention,
        loss_chunk=config.loss_chunk,
        grad_accum=config.grad_accum,
        packing=config.data.packing,
        lora=spec,
        seed=config.seed,
        gather_line=line_length(mesh),
        ordered_gradients=in_parts and scatters_gradients(chip, config.xla_flags),
    )
    flags = compiler_options(chip, config.xla_flags)
    # The state stays where it is, and every process can read the numbers.
    everywhere = sharding.replicated(mesh)
    stays = (jax.tree.map(lambda x: x.sharding, state), everywhere)
    rows = sharding.batch_sharding(mesh)
    shape = (batch_rows(config), config.data.seq_len)
    return Program(
        mesh=mesh,
        tx=tx,
        schedule=schedule,
        options=options,
        state=state,
        batch={k: jax.ShapeDtypeStruct(shape, dtype, sharding=rows) for k, dtype in FIELDS.items()},
        base=base,
        spec=spec,
        train_step=jax.jit(
            step.make_train_step(cfg, tx, schedule, options),
            donate_argnums=0,
            out_shardings=stays,
            compiler_options=flags or None,
        ),
        eval_step=jax.jit(step.make_eval_step(cfg, options), out_shardings=everywhere, compiler_options=flags or None),
        answer_step=jax.jit(make_answer_step(cfg, options), out_shardings=everywhere, compiler_options=flags or None),
        compiler_options=flags,
    )
