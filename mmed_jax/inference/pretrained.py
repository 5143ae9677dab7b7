"""A model held in Python: loaded, called, asked, trained and saved. `from mmed_jax import Llama`.

    model = Llama.from_pretrained("exports/my-medical-llama")     a run directory, or a Hugging Face folder
    logits = model(tokens)                                        float32 [B, T, V]
    model.generate("Which vitamin prevents scurvy?")
    model.save_pretrained("copy")

`generate` and `evaluate` load their models here. examples/python_api.py shows a training step as well.
"""

import contextlib
import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from mmed_jax.common.errors import UserError, nearest
from mmed_jax.data.plain_text import decode_after
from mmed_jax.hf.open_model import ModelSource, open_model, trained_prompts
from mmed_jax.hf.save import save_pretrained
from mmed_jax.hf.tuning import export_info
from mmed_jax.inference.engine import Engine
from mmed_jax.inference.prompt_files import PromptFormat, prompt_ids
from mmed_jax.model import llama, nnx_llama
from mmed_jax.parallel.sharding import param_shardings

Prompt = str | Mapping[str, Any] | Sequence[Mapping[str, Any]]
DTYPES = ("float32", "bfloat16", "float16")


@partial(jax.jit, static_argnames=("cfg", "compute_dtype", "remat", "attention"))
def _logits(params, cfg, tokens_bt, positions_bt, segment_ids_bt, *, compute_dtype, remat, attention):
    hidden = llama.forward(
        params,
        cfg,
        tokens_bt,
        positions_bt=positions_bt,
        segment_ids_bt=segment_ids_bt,
        compute_dtype=compute_dtype,
        remat=remat,
        attention=attention,
    )
    return llama.unembed(params, cfg, hidden)


class Llama(nnx_llama.Llama):
    """The NNX module of mmed_jax.model.nnx_llama together with where it came from.

    Its nnx.Params are the only copy of the weights: `params`, `generate` and `save_pretrained` hand on the same arrays.
    It is an ordinary Flax module: nnx.jit, nnx.grad, nnx.split and nnx.update(model, params) work on it.

    Attributes:
      cfg: the model's constants. source: its folder, tokenizer and generation_config. mesh: its devices, None = one.
    """

    def __init__(self, params: llama.Params, source: ModelSource, mesh: Mesh | None = None):
        super().__init__(source.cfg, params=params)
        self.source, self.mesh = source, mesh

    @classmethod
    def from_pretrained(
        cls,
        path: str | os.PathLike | ModelSource,
        *,
        step: int | None = None,
        dtype: str | None = None,
        mesh: Mesh | None = None,
        shardings: Any = None,
        ignore_keys: Sequence[str] = (),
        adapter: str | os.PathLike = "",
        base: str | os.PathLike = "",
        progress: Callable[[int, int], None] | None = None,
    ) -> "Llama":
        """Loads a run directory, a Hugging Face or a PEFT folder; every process calls this.

        An adapter is merged into its base: each weight is their float32 sum, rounded once.

        Args:
          path: the folder, or what mmed_jax.hf.open_model.open_model made of it (then nothing else that chooses it).
          step: checkpoint of a run; None = the newest good one.
          dtype: of weights and compute: "float32", "bfloat16", "float16", or "source" = as stored. None = float32 on a
            CPU, else bfloat16.
          mesh: devices that hold it, from mmed_jax.parallel.sharding.make_mesh; None = the first device.
          shardings: a tree of Shardings or one for all weights, in place of those of the mesh.
          ignore_keys: of config.json, not known here, of which you know that they change nothing.
          adapter: PEFT folder whose adapter goes onto `path`.
          base: of a LoRA run or a PEFT folder: where its base lies, if it moved.
          progress: called with (bytes read, bytes in all); Hugging Face folders only.

        Raises:
          UserError: no model there, or one that does not fit its config.json; another dtype. WorkError: unreadable
            checkpoints.
        """
        if dtype is None:
            dtype = "float32" if jax.default_backend() == "cpu" else "bfloat16"
        elif dtype != "source":
            dtype = _float_name(dtype, (*DTYPES, "source"))
        if isinstance(path, ModelSource) and (step is not None or ignore_keys or adapter or base):
            raise UserError(
                "step, ignore_keys, adapter, base: go to open_model, which has chosen the checkpoint already"
            )
        if isinstance(path, ModelSource):
            source = path
        else:
            source = open_model(path, step, ignore_keys, adapter=adapter, base_dir=base)
        if shardings is None and mesh is not None:
            shardings = param_shardings(mesh, llama.logical_axes(source.cfg))
        kept = None if dtype == "source" else dtype
        return cls(source.load_params(shardings=shardings, dtype=kept, progress=progress), source, mesh)

    @property
    def params(self) -> llama.Params:
        """The weights as the plain tree that training, inference and export work on; the same arrays, no copies."""
        return nnx.to_pure_dict(nnx.state(self, nnx.Param))

    @property
    def tokenizer(self) -> Any:
        """The model's tokenizer. Raises UserError: none there, or it does not fit the model."""
        return self.source.tokenizer

    @property
    def dtype(self) -> jnp.dtype:
        """Of the weights, in which `model(tokens)` and `generate` compute too; softmax, norms and logits in float32."""
        return self.embed.weight.dtype

    def __call__(
        self,
        tokens_bt: Any,
        *,
        positions_bt: jax.Array | None = None,
        segment_ids_bt: jax.Array | None = None,
        compute_dtype: Any = None,
        remat: str = "none",
        attention: str = "auto",
    ) -> jax.Array:
        """float32 logits [B, T, V] of token ids [B, T]; each shape is compiled once.

        Args:
          tokens_bt: ints, begin token included (an id outside the vocabulary gives NaN).
          positions_bt, segment_ids_bt, remat, attention: as in mmed_jax.model.llama.forward.
          compute_dtype: of matmuls and activations; None = `dtype`.

        Raises:
          UserError: no whole numbers of shape [B, T]; another compute_dtype than a float's.
        """
        tokens_bt = _token_ids(tokens_bt)
        compute_dtype = self.dtype if compute_dtype is None else jnp.dtype(_float_name(compute_dtype, DTYPES))
        # Within a traced function the mesh is the caller's to set.
        traced = isinstance(tokens_bt, jax.core.Tracer) or isinstance(self.embed.weight[...], jax.core.Tracer)
        with contextlib.nullcontext() if self.mesh is None or traced else jax.set_mesh(self.mesh):
            return _logits(
                self.params,
                self.cfg,
                tokens_bt,
                positions_bt,
                segment_ids_bt,
                compute_dtype=compute_dtype,
                remat=remat,
                attention=attention,
            )

    def engine(self, *, max_batch: int = 16, stop_ids: Sequence[int] | None = None, release: bool = False) -> Engine:
        """An engine on these weights, for many prompts, streaming and log-likelihoods (mmed_jax.inference.engine).

        Args:
          max_batch: answers written at a time. stop_ids: tokens that end an answer; None = the model's.
          release: the engine may take the weights, and this model must not be used any more. On a CPU it then lays them
            out anew, which makes a step faster by a third; without, the engine's weights are this model's arrays.
        """
        return Engine(
            self.params,
            self.cfg,
            mesh=self.mesh,
            compute_dtype=self.dtype,
            max_batch=max_batch,
            stop_ids=self.source.stop_ids if stop_ids is None else stop_ids,
            unroll=None if release else False,
            owned=release,
        )

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        *,
        max_new_tokens: int = 512,
        temperature: float = 0.0,
        top_p: float = 1.0,
        top_k: int = 0,
        seed: int = 0,
        system: str | None = None,
        mode: str = "rationale",
        raw: bool = False,
        batch_size: int = 16,
    ) -> str | list[str]:
        """Answers a prompt (a text) or a list of them (as many texts); greedily unless a temperature is given.

        Args:
          prompts: a prompt is a question, a list of {"role", "content"} messages, or a record, as the lines of
            `generate --input`.
          system: system message; None = the one the run was trained with, else none.
          mode: how a multiple-choice record is asked: "rationale" or "direct".
          raw: prompts are text that is continued, without a chat format.
          batch_size: answers written at a time; changes speed only.

        Raises:
          UserError: no prompt, one too long for the model, a tokenizer without chat format.
        """
        if not isinstance(prompts, str | Mapping | Sequence):
            prompts = list(prompts)  # a generator gives its prompts once
        single = isinstance(prompts, str | Mapping) or (
            bool(prompts) and all(isinstance(p, Mapping) and "role" in p for p in prompts)
        )
        trained, tok = trained_prompts(self.source), self.tokenizer
        prompt_format = PromptFormat(
            raw=raw,
            mode=mode,
            family=trained["prompt_family"],
            system="" if raw else trained["system_prompt"] if system is None else system,
        )
        each = [prompts] if single else list(prompts)
        ids = [prompt_ids(tok, _as_object(p), f"prompt {i}", prompt_format) for i, p in enumerate(each, 1)]
        completions = self.engine(max_batch=batch_size).generate(
            ids, max_new_tokens=max_new_tokens, temperature=temperature, top_p=top_p, top_k=top_k, seed=seed
        )
        texts = [decode_after(tok, p if raw else (), c.ids) for p, c in zip(ids, completions, strict=True)]
        return texts[0] if single else texts

    def save_pretrained(
        self,
        path: str | os.PathLike,
        *,
        dtype: str | None = None,
        overwrite: bool = False,
        progress: Callable[[int, int], None] | None = None,
    ) -> os.PathLike:
        """Writes a Hugging Face folder, checked before it gets its name (mmed_jax.hf.save.save_pretrained).

        Args:
          path: a new or empty folder, or with `overwrite` an earlier export.
          dtype: of the stored weights: "float32", "bfloat16" or "float16"; None = as they are here.
          progress: called with (bytes written, bytes in all).

        Raises:
          UserError, WorkError: as save_pretrained does.
        """
        if dtype is not None:
            dtype = _float_name(dtype, DTYPES)
        return save_pretrained(
            path,
            self.params,
            self.cfg,
            self.tokenizer,
            dtype=dtype,
            source_generation=self.source.generation,
            info=export_info(self.source, "mmed_jax.Llama"),
            overwrite=overwrite,
            progress=progress,
        )


def _as_object(prompt: Prompt) -> dict:
    """A prompt as the object that a line of a prompt file holds."""
    if isinstance(prompt, str):
        return {"prompt": prompt}
    return dict(prompt) if isinstance(prompt, Mapping) else {"messages": [dict(m) for m in prompt]}


def _float_name(dtype: Any, names: Sequence[str]) -> str:
    """The name of a dtype of DTYPES, given as that or as a dtype of numpy or jax. Raises UserError."""
    try:
        name = jnp.dtype(dtype).name
    except TypeError:
        name = str(dtype)
    if name not in DTYPES:
        raise UserError(f"dtype={name}: is none of a model's{nearest(name, names)}")
    return name


def _token_ids(tokens: Any) -> jax.Array:
    """Ids as int32 [B, T]. Raises UserError: a cast would make other ids of fractions and of long numbers."""
    if not isinstance(tokens, jax.Array):
        try:
            tokens = np.asarray(tokens)
        except ValueError:  # numpy's, of a ragged list
            raise UserError(
                "tokens: rows of several lengths; pad them behind, or call with one after another"
            ) from None
    if not jnp.issubdtype(tokens.dtype, jnp.integer) or tokens.ndim != 2 or not tokens.size:
        raise UserError(
            f"tokens: {tokens.dtype} of shape {list(tokens.shape)}; must be whole numbers of shape [rows, tokens], "
            "a single prompt is [ids]"
        )
    largest = np.iinfo(np.int32).max
    if isinstance(tokens, np.ndarray):  # what int32 does not hold stays outside the vocabulary
        limits = np.iinfo(tokens.dtype)
        tokens = tokens.clip(max(-1, limits.min), min(largest, limits.max))
    tokens = jnp.asarray(tokens, jnp.int32)
    return jnp.where(tokens < 0, largest, tokens)  # an index of -1 would be the last id
