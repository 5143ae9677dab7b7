"""Every key of a training config, with its meaning. Stages and variants change values, never add keys.

A key can be set on the command line: --config.optim.lr=1e-5, lists as a,b,c, mappings as name=value,name=value.
"""

from ml_collections import ConfigDict


def base() -> ConfigDict:
    """The full config with neutral values."""
    c = ConfigDict()
    # What this run is called; set by the stage files.
    c.name = ""
    c.variant = ""
    # Seeds parameter initialisation and the order of the data; 0 to 2**32 - 1.
    c.seed = 0
    # Everything the run writes goes here. Running again continues from here.
    c.run_dir = ""
    # A run whose metrics.jsonl says that checkpoints were saved stops when none of them is there. True = begin again at
    # step 0 then; where there are checkpoints it goes on from them as always.
    c.restart = False
    # Weights to start from: "" = random, an HF folder, or a run folder (its newest good checkpoint; weights only,
    # step 0).
    c.init_from = ""
    # HF folder or Meta tokenizer.model; "" = the tokenizer of `init_from`; "demo" = the embedded one.
    c.tokenizer = ""

    # The architecture; read only when init_from is "" (otherwise it comes from there). 0 = the preset's value.
    c.model = ConfigDict()
    c.model.preset = "demo"
    c.model.vocab_size = 0
    c.model.hidden_size = 0
    c.model.intermediate_size = 0
    c.model.num_layers = 0
    c.model.num_heads = 0
    c.model.num_kv_heads = 0
    c.model.head_dim = 0
    c.model.max_position_embeddings = 0
    # Keys in the config.json of init_from that are not known here, and of which you know that they change nothing.
    c.model.ignore_keys = ()

    # Where it may run: "any", or "accelerator" = refuse to start on a CPU.
    c.platform = "any"
    # Matmuls and activations. Norms, softmax, logits and the loss are always float32.
    c.compute_dtype = "float32"
    # Master weights.
    c.param_dtype = "float32"
    # What the backward pass recomputes: see mmed_jax/model/remat.py.
    c.remat = "none"
    # Attention backend: auto, reference, splash (TPU), triton (GPU), cudnn (GPU, data.packing=False).
    c.attention = "auto"
    # Tokens whose logits exist at one time in the loss.
    c.loss_chunk = 1024
    # Compiler flags: "auto" = the table of parallel/xla_flags.py for the chip; "none" = the compiler's defaults;
    # flag=value,flag=value = these in place of the table.
    c.xla_flags = "auto"

    c.data = ConfigDict()
    # "instruction" (stage 1) or "mcq" (stage 2).
    c.data.kind = "instruction"
    # Record files: .jsonl, .jsonl.gz, MMedBench folders or zips, TFDS folders.
    c.data.train = ()
    c.data.validation = ()
    # When no validation files are named: share of the questions (not rows) held out.
    c.data.validation_fraction = 0.02
    # Languages to use; empty = all in the files.
    c.data.languages = ()
    c.data.seq_len = 2048
    # Rows longer than seq_len: "drop", or "truncate_prompt" (the answer is never cut).
    c.data.overlong = "truncate_prompt"
    # Several examples in one row, isolated by segment ids; False = one example a row.
    c.data.packing = True
    # Stage 2: the samples made from each question.
    c.data.modes = ("rationale", "direct")
    # "llama3" (chat template) or "mmedbench" (the MMedLM strings).
    c.data.prompt_family = "llama3"
    # A system message put before every conversation that has none; "" = none.
    c.data.system_prompt = ""
    # Expected repetitions an epoch, by source and by language; absent = 1.
    c.data.source_weights = ConfigDict()
    c.data.language_weights = ConfigDict()
    # Packed tables, keyed by a hash of all that went into them.
    c.data.cache_dir = "data/packed"

    # Global batch: sequences, or tokens (batch_tokens / seq_len sequences). Exactly one is not 0.
    c.batch_size = 0
    c.batch_tokens = 0
    # Micro-batches one after the other; gradients are summed in float32 and divided once.
    c.grad_accum = 1
    # Length of the run: optimizer steps, or epochs. Exactly one is not 0.
    c.steps = 0
    c.epochs = 0.0

    c.optim = ConfigDict()
    # Bytes a parameter that stay on the devices with float32 weights (4): adamw 12, or 10 with mu_dtype=bfloat16;
    # adafactor 4 (no first moment, second moment factored: a few thousandths of the weights). With bfloat16 weights
    # 2 less. Gradients take 4 more while a step runs.
    c.optim.name = "adamw"
    c.optim.lr = 1e-5
    # cosine, linear, wsd (warm-up, stable, decay), constant.
    c.optim.schedule = "cosine"
    # Warm-up: steps, or share of the run. At most one is not 0.
    c.optim.warmup_steps = 0
    c.optim.warmup_ratio = 0.03
    # The last learning rate as a share of lr; for wsd also the share of the run that decays.
    c.optim.end_lr_ratio = 0.0
    c.optim.decay_ratio = 0.1
    # b1, eps and mu_dtype are adamw's. b2 bounds the memory of the second moment in both.
    c.optim.b1 = 0.9
    c.optim.b2 = 0.95
    c.optim.eps = 1e-8
    c.optim.weight_decay = 0.0
    # Norms and biases never decay; embeddings only when asked.
    c.optim.decay_embeddings = False
    c.optim.clip_norm = 1.0
    # First moment: float32 or bfloat16. The second is float32.
    c.optim.mu_dtype = "float32"

    # Devices: sizes of the mesh axes, one may be -1 (what is left).
    # `devices`: how many to use, 0 = all (fewer only within one process).
    c.mesh = ConfigDict()
    c.mesh.devices = 0
    c.mesh.data = 1
    c.mesh.fsdp = -1
    c.mesh.tensor = 1
    c.mesh.context = 1

    # In optimizer steps. eval_every 0 = only at the end; eval_rows 0 = the whole validation set.
    c.log_every = 10
    c.eval_every = 0
    c.eval_rows = 0

    c.checkpoint = ConfigDict()
    # 0 = not by steps / not by minutes. The last step is always saved.
    c.checkpoint.every_steps = 0
    c.checkpoint.every_minutes = 30.0
    c.checkpoint.keep_last = 2
    c.checkpoint.keep_best = 1

    c.tensorboard = True
    # W&B project; "" = off. The key comes from the environment.
    c.wandb = ""
    # XLA's persistent cache; "" = off. Several hosts: a shared folder; several processes on CPUs do without.
    c.compile_cache = "~/.cache/mmed_jax/compile"

    # Several hosts. On TPU pods and under Slurm everything is found by itself.
    c.distributed = ConfigDict()
    # The run stops unless this many processes take part; 0 = not checked.
    c.distributed.expect_processes = 0
    # host:port of process 0 with process count and index, where no scheduler tells.
    c.distributed.coordinator = ""
    c.distributed.num_processes = 0
    c.distributed.process_id = -1
    c.distributed.timeout_seconds = 300
    return c
