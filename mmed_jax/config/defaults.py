"""Every key of a training config, with its meaning. Stages and variants change values, never add keys.

A key can be set on the command line: --config.optim.lr=1e-5, lists as a,b,c, mappings as name=value,name=value.
Behind the default: which values are valid, `may_change` for what a run that is continued may have otherwise, `compiled`
for what decides the compiled step, `per_host` for what hosts of one run may have otherwise (see key_declaration.py).
"""

from ml_collections import ConfigDict

from mmed_jax.common.place_flags import InputPlace, ModelPlace, OutputPlace
from mmed_jax.config.key_declaration import Key, neutral


def base() -> ConfigDict:
    """The full config with neutral values."""
    return neutral(KEYS)


# What an adapter can be put on: the linear modules of a layer, and of untied models the two tables.
LORA_MODULES = ("q", "k", "v", "o", "gate", "up", "down")
LORA_TARGETS = (*LORA_MODULES, "head", "embed")

# Numbers of an evaluation that the best checkpoint can be chosen by.
BEST_METRICS = ("validation/loss", "validation/accuracy")

KEYS: dict[str, Key] = {
    # What this run is called; set by the stage files.
    "name": Key(""),
    "variant": Key(""),
    # Seeds parameter initialisation and the order of the data; 0 to 2**32 - 1: jax.random.key reads 32 bits of it, a
    # larger one would silently give the weights of a smaller one.
    "seed": Key(0, not_negative=True, at_most=2**32 - 1),
    # Everything the run writes goes here. Running again continues from here.
    "run_dir": Key("", required="name a folder", may_change=True, place=OutputPlace, per_host=True),
    # A run whose metrics.jsonl says that checkpoints were saved stops when none of them is there. True = begin again at
    # step 0 then; where there are checkpoints it goes on from them as always.
    "restart": Key(False, may_change=True),
    # Weights to start from: "" = random, an HF folder, or a run folder (its newest good checkpoint; weights only,
    # step 0).
    "init_from": Key("", place=ModelPlace),
    # HF folder or Meta tokenizer.model; "" = the tokenizer of `init_from`; "demo" = the embedded one.
    "tokenizer": Key("", place=InputPlace),
    # The architecture; read only when init_from is "" (otherwise it comes from there). 0 = the preset's value.
    "model.preset": Key("demo"),
    "model.vocab_size": Key(0),
    "model.hidden_size": Key(0),
    "model.intermediate_size": Key(0),
    "model.num_layers": Key(0),
    "model.num_heads": Key(0),
    "model.num_kv_heads": Key(0),
    "model.head_dim": Key(0),
    "model.max_position_embeddings": Key(0),
    # Keys in the config.json of init_from that are not known here, and of which you know that they change nothing.
    "model.ignore_keys": Key((), may_change=True),  # what the model is stands in the run itself
    # Where it may run: "any", or "accelerator" = refuse to start on a CPU.
    "platform": Key("any", choices=("any", "accelerator"), may_change=True),
    # Matmuls and activations. Norms, softmax, logits and the loss are always float32.
    "compute_dtype": Key("float32", choices=("float32", "bfloat16"), compiled=True),
    # Master weights.
    "param_dtype": Key("float32", choices=("float32", "bfloat16"), compiled=True),
    # What the backward pass recomputes: see mmed_jax/model/remat.py.
    "remat": Key(
        "none",
        choices=("none", "full", "qkv", "minimal", "minimal_ctx", "offload"),
        may_change=True,
        compiled=True,
    ),
    # Attention backend: auto, reference, splash (TPU), triton (GPU), cudnn (GPU, data.packing=False).
    "attention": Key(
        "auto",
        choices=("auto", "reference", "splash", "triton", "cudnn"),
        may_change=True,
        compiled=True,
    ),
    # Tokens whose logits exist at one time in the loss.
    "loss_chunk": Key(1024, positive=True, may_change=True, compiled=True),
    # Compiler flags: "auto" = the table of parallel/xla_flags.py for the chip; "none" = the compiler's defaults;
    # flag=value,flag=value = these in place of the table.
    "xla_flags": Key("auto", may_change=True, compiled=True),
    # "document" (running text, continued pretraining), "instruction" (stage 1), "mcq" (stage 2) or "mixed" (records of
    # both stages in one run).
    "data.kind": Key("instruction", choices=("instruction", "mcq", "document", "mixed")),
    # Record files: .jsonl, .jsonl.gz, MMedBench folders or zips, TFDS folders. Documents: tables of `python -m data_gen
    # corpus tokenize`, or files of documents: .jsonl, .jsonl.gz, .jsonl.zst with a key "text".
    "data.train": Key((), required="name at least one record file, --config.data.train=FILE.jsonl", place=InputPlace),
    "data.validation": Key((), place=InputPlace),
    # When no validation files are named: share of the questions (not rows) held out; of documents in files. Tables of
    # documents have a part of their own that was held out.
    "data.validation_fraction": Key(0.02, ratio=True),
    # Languages to use; empty = all in the files.
    "data.languages": Key(()),
    "data.seq_len": Key(2048, positive=True, compiled=True),
    # Rows longer than seq_len: "drop", or "truncate_prompt" (the answer is never cut).
    "data.overlong": Key("truncate_prompt", choices=("drop", "truncate_prompt")),
    # Several examples in one row, isolated by segment ids; False = one example a row (of documents in files one segment
    # a row, so that attention sees across them).
    "data.packing": Key(True, compiled=True),
    # Stage 2: the samples made from each question.
    "data.modes": Key(("rationale", "direct"), choices=("rationale", "direct")),
    # "llama3" (chat template) or "mmedbench" (the MMedLM strings).
    "data.prompt_family": Key("llama3", choices=("llama3", "mmedbench")),
    # A system message put before every conversation that has none; "" = none.
    "data.system_prompt": Key(""),
    # Expected repetitions an epoch, by source and by language; absent = 1. Of documents factors of their shares of what
    # is read, 0 = never: docs/corpus.md.
    "data.source_weights": Key({}),
    "data.language_weights": Key({}),
    # Documents: languages get shares by weight x rows ^ (1 / temperature): 1 = as they are, larger = more alike.
    "data.temperature": Key(1.0, positive=True),
    # Documents: tables or files of general text that is mixed in, against forgetting, and its share of the rows.
    "data.replay": Key((), place=InputPlace),
    "data.replay_share": Key(0.1, ratio=True),
    # Documents: a warning names the groups (language/source) that the run reads more often than this (arXiv 2305.16264:
    # up to four epochs are about as good as new text).
    "data.max_repeats": Key(4.0, positive=True, may_change=True),
    # Packed tables, keyed by a hash of all that went into them.
    "data.cache_dir": Key("data/packed", required="name a folder", may_change=True, place=OutputPlace, per_host=True),
    # Global batch: sequences, or tokens (batch_tokens / seq_len sequences). Exactly one is not 0.
    "batch_size": Key(0, not_negative=True, compiled=True),
    "batch_tokens": Key(0, not_negative=True, compiled=True),
    # Micro-batches one after the other; gradients are summed in float32 and divided once. 0 = as few as leave each
    # device at most micro_rows rows at a time, whatever their number; the banner, and plan, say how many that is.
    "grad_accum": Key(1, not_negative=True, may_change=True, compiled=True),
    "micro_rows": Key(1, positive=True, may_change=True),
    # Length of the run: optimizer steps, or epochs. Exactly one is not 0.
    "steps": Key(0, not_negative=True),
    "epochs": Key(0.0, not_negative=True),
    # Bytes a parameter that stay on the devices with float32 weights (4): adamw 12, or 10 with mu_dtype=bfloat16;
    # adafactor 4 (no first moment, second moment factored: a few thousandths of the weights). With bfloat16 weights
    # 2 less. Gradients take 4 more while a step runs.
    "optim.name": Key("adamw", choices=("adamw", "adafactor"), compiled=True),
    "optim.lr": Key(1e-5, positive=True),
    # cosine, linear, wsd (warm-up, stable, decay), constant.
    "optim.schedule": Key("cosine", choices=("cosine", "linear", "wsd", "constant")),
    # Warm-up: steps, or share of the run. At most one is not 0.
    "optim.warmup_steps": Key(0, not_negative=True),
    "optim.warmup_ratio": Key(0.03, ratio=True),
    # The last learning rate as a share of lr; for wsd also the share of the run that decays.
    "optim.end_lr_ratio": Key(0.0, ratio=True),
    "optim.decay_ratio": Key(0.1, ratio=True),
    # b1, eps and mu_dtype are adamw's. b2 bounds the memory of the second moment in both.
    "optim.b1": Key(0.9, ratio=True, adamw_only=True),
    "optim.b2": Key(0.95, ratio=True),
    "optim.eps": Key(1e-8, positive=True, adamw_only=True),
    "optim.weight_decay": Key(0.0, not_negative=True, compiled=True),
    # Norms and biases never decay; embeddings only when asked.
    "optim.decay_embeddings": Key(False, compiled=True),
    "optim.clip_norm": Key(1.0, not_negative=True, compiled=True),
    # First moment: float32 or bfloat16. The second is float32.
    "optim.mu_dtype": Key("float32", choices=("float32", "bfloat16"), adamw_only=True, compiled=True),
    # Low-rank adapters (LoRA, arXiv 2106.09685) on frozen weights: the rank, 0 = train all weights. Adapters are
    # float32; checkpoints hold them alone, with the fingerprint of the weights they belong to. docs/lora.md
    "lora.rank": Key(0, not_negative=True, at_most=2**16, compiled=True),
    # The adapter's output is scaled by alpha / rank, or with rslora by alpha / sqrt(rank) (arXiv 2312.03732).
    # 0 = 2 x rank.
    "lora.alpha": Key(0.0, not_negative=True, compiled=True),
    "lora.rslora": Key(False, compiled=True),
    # Direction and magnitude of the weights' rows are trained apart (arXiv 2402.09353).
    "lora.dora": Key(False, compiled=True),
    # Share of an adapter's inputs that a training step leaves out, drawn anew by step and micro-batch.
    "lora.dropout": Key(0.0, ratio=True, compiled=True),
    # The modules that get an adapter, and the layers, by number from 0; () = all of them.
    "lora.targets": Key(LORA_MODULES, choices=LORA_TARGETS, required="name modules, for example q,v", compiled=True),
    "lora.layers": Key((), compiled=True),
    # Other ranks and alphas than the above: down=64,layers.3.q=8; the longer name wins.
    "lora.rank_pattern": Key({}, compiled=True),
    "lora.alpha_pattern": Key({}, compiled=True),
    # LoRA+ (arXiv 2402.12354): the learning rate of B, the factor that starts at zero, is this many times optim.lr.
    "lora.b_lr_ratio": Key(1.0, positive=True, compiled=True),
    # The frozen weights on the devices: in compute_dtype, or quantised (QLoRA, arXiv 2305.14314).
    "lora.base": Key("compute", choices=("compute", "int8", "nf4"), compiled=True),
    # Where init_from is itself an adapter on some weights (a LoRA run, a PEFT folder): "continue" trains it on, with
    # a fresh optimizer and schedule; "fresh" refuses it, and takes whole weights only.
    "lora.start": Key("continue", choices=("continue", "fresh"), may_change=True),
    # Devices: sizes of the mesh axes, one may be -1 (what is left).
    # `devices`: how many to use, 0 = all (fewer only within one process).
    "mesh.devices": Key(0, not_negative=True, may_change=True),
    "mesh.data": Key(1, may_change=True, compiled=True),
    "mesh.fsdp": Key(-1, may_change=True, compiled=True),
    "mesh.tensor": Key(1, may_change=True, compiled=True),
    "mesh.context": Key(1, may_change=True, compiled=True),
    # In optimizer steps. eval_every 0 = only at the end; eval_rows 0 = the whole validation set.
    "log_every": Key(10, positive=True, may_change=True),
    "eval_every": Key(0, not_negative=True, may_change=True),
    "eval_rows": Key(0, not_negative=True, may_change=True),
    # Evaluations besides: of the untrained model before the first step; at the end of every epoch.
    "eval_at_start": Key(False, may_change=True),
    "eval_epochs": Key(False, may_change=True),
    # At every evaluation: validation questions whose options are scored (accuracy), and validation prompts that are
    # answered; 0 = none. Both are fixed by the seed and spread over the languages.
    "eval_questions": Key(0, not_negative=True, at_most=2000, may_change=True),
    "eval_answers": Key(0, not_negative=True, at_most=64, may_change=True),
    # The run ends after so many evaluations without a better checkpoint.best_metric; 0 = never.
    "stop_after": Key(0, not_negative=True, may_change=True),
    # 0 = not by steps / not by minutes. The last step is always saved.
    "checkpoint.every_steps": Key(0, not_negative=True, may_change=True),
    # "auto" = as often as costs least, by how long saves are seen to hold the steps up and by the next key.
    "checkpoint.every_minutes": Key(30.0, not_negative=True, may_change=True, words=("auto",)),
    # Read with every_minutes=auto: how long the whole run, all its hosts together, goes on before something stops it.
    "checkpoint.mean_hours_between_interruptions": Key(24.0, positive=True, may_change=True),
    "checkpoint.keep_last": Key(2, positive=True, may_change=True),
    "checkpoint.keep_best": Key(1, not_negative=True, may_change=True),
    # What the best is chosen by: the lowest loss, or the highest accuracy on eval_questions questions.
    "checkpoint.best_metric": Key("validation/loss", choices=BEST_METRICS, may_change=True),
    # In a bucket: a checkpoint that is not written or read after so long ends the run; 0 = waits without end.
    "checkpoint.deadline_minutes": Key(60.0, not_negative=True, may_change=True),
    # Also write event files to run_dir/tensorboard.
    "tensorboard": Key(True, may_change=True),
    # W&B project; "" = off. The key comes from the environment.
    "wandb": Key("", may_change=True),
    # XLA's persistent cache; "" = off. Several hosts: a shared folder; several processes on CPUs do without.
    "compile_cache": Key("~/.cache/mmed_jax/compile", may_change=True, place=str, per_host=True),
    # Several hosts. On TPU pods and under Slurm everything is found by itself.
    # The run stops unless this many processes take part; 0 = not checked.
    "distributed.expect_processes": Key(0, may_change=True),
    # host:port of process 0 with process count and index, where no scheduler tells.
    "distributed.coordinator": Key("", may_change=True, per_host=True),
    "distributed.num_processes": Key(0, may_change=True),
    "distributed.process_id": Key(-1, may_change=True, per_host=True),
    "distributed.timeout_seconds": Key(300, positive=True, may_change=True, per_host=True),
}
