"""Stage 1: general medical instructions (MMed-IFT, arXiv 2409.05732).

    python -m mmed_jax.train --config=stage1        demo: embedded records, any machine
    python -m mmed_jax.train --config=stage1:8b --config.data.train=records/stage1.jsonl

variant  hardware it is meant for      weights                    batch x length   lr, schedule               length
demo     2 CPU cores                   random, 1.3 M parameters   2 x 256          5e-3, cosine, warm-up 5 %  17 epochs
1b       hardware.MODELS["1b"]         models/Llama-3.2-1B        128 x 2048       2e-5, cosine, warm-up 3 %  3 epochs
3b       hardware.MODELS["3b"]         models/Llama-3.2-3B        128 x 2048       2e-5, cosine, warm-up 3 %  3 epochs
8b       hardware.MODELS["8b"]         models/Meta-Llama-3-8B     128 x 2048       1e-5, cosine, warm-up 3 %  3 epochs
70b      hardware.MODELS["70b"]        models/Meta-Llama-3-70B    128 x 2048       5e-6, cosine, warm-up 3 %  3 epochs

custom     your own model, named by config.init_from; values from its size (configs/custom.py), also -lora and -qlora

demo-lora  2 CPU cores             random, frozen             2 x 256          4e-3, cosine, warm-up 5 %  40 epochs
1b-lora    see docs/lora.md        models/Llama-3.2-1B        128 x 2048       2e-4, cosine, warm-up 3 %  3 epochs
3b-lora    see docs/lora.md        models/Llama-3.2-3B        128 x 2048       2e-4, cosine, warm-up 3 %  3 epochs
8b-lora    see docs/lora.md        models/Meta-Llama-3-8B     128 x 2048       1e-4, cosine, warm-up 3 %  3 epochs
70b-lora   see docs/lora.md        models/Meta-Llama-3-70B    128 x 2048       5e-5, cosine, warm-up 3 %  3 epochs

-qlora in place of -lora: the same with the frozen weights in 4 bits (lora.base=nf4). All of them: rank 16, alpha 32, on
every linear module.

Sources. The stage-1 hyperparameters of arXiv 2409.05732 are not public. Batch 128, length 2048, cosine with 3 %
warm-up, no weight decay, clipping at 1.0 are those of arXiv 2402.13963's full fine-tuning (MMedLM,
finetune/fullmodel_finetuning.sh); learning rates by size and 3 epochs are our choice (epochs are no default to trust:
see stage 2). So the variants of open models are evaluated before the first step, every 200 steps and at every epoch,
and answer five validation prompts each time; the best checkpoint by validation loss is kept, and the last lines say
where it lay. With adapters: every linear module, alpha 32 and ten times the learning rate of full fine-tuning, as "LoRA
Without Regret" finds (Schulman and Thinking Machines Lab, 2025, thinkingmachines.ai/blog/lora; repeated in
huggingface.co/docs/trl, lora_without_regret). It warns that adapters bear large batches less well than full
fine-tuning: 128 is kept so that both can be compared.

Expect (demo): about a minute, final loss below 0.02, at least 95 % of the trained answers given word for word.
Expect (demo-lora): two to three minutes, final loss below 0.8 (the frozen embedding, which is the head too, allows
little less), at least 95 % of the answers. Rank 128 is as wide as the model, because its random weights know nothing;
half as much gives about as many. At this rank it learns more slowly with 5e-3 than with 4e-3.
"""

from ml_collections import ConfigDict

from configs import hardware
from mmed_jax.config import base
from mmed_jax.config.recipes import OWN_MODEL

SIZES = ("1b", "3b", "8b", "70b")
SIZED = (*("demo", *SIZES), "demo-lora", *(f"{size}-{kind}" for size in SIZES for kind in ("lora", "qlora")))
VARIANTS = (*SIZED, *OWN_MODEL)
LEARNING_RATE = {"1b": 2e-5, "3b": 2e-5, "8b": 1e-5, "70b": 5e-6}
# Of an adapter's learning rate to that of full fine-tuning.
LORA_FACTOR = 10


def get_config(variant: str = "demo") -> ConfigDict:
    """The config of one variant; see the table above."""
    c = base()
    c.name, c.variant = "stage1", variant
    c.run_dir = f"runs/stage1-{variant}"
    c.data.kind = "instruction"
    if variant in ("demo", "demo-lora"):
        demo(c)
        c.epochs = 17.0
        if variant == "demo-lora":
            demo_lora(c)
            c.epochs = 40.0
        c.data.train = ("data_gen/handcrafted/instructions.jsonl",)
        return c
    size, _, kind = variant.partition("-")
    accelerator(c, kind)
    c.data.train = ("records/stage1.jsonl",)
    c.epochs = 3.0
    evaluations(c)
    if size == "custom":
        leave_open(c)
        return c
    c.init_from = hardware.MODELS[size][0]
    c.data.seq_len = 2048
    c.batch_size = 128
    c.optim.lr = LEARNING_RATE[size] * (LORA_FACTOR if kind else 1)
    c.eval_answers = 5
    return c


def evaluations(c: ConfigDict) -> None:
    """When a variant of an open model, or of one's own, is evaluated; with stage 2."""
    c.eval_at_start = True
    c.eval_epochs = True
    c.eval_every = 200


def leave_open(c: ConfigDict) -> None:
    """What configs/custom.py chooses has values that no run can have until then: any other was set by somebody."""
    c.data.seq_len = 0
    c.batch_size = 0
    c.optim.lr = 0.0
    c.compute_dtype = c.remat = c.platform = ""
    c.grad_accum, c.micro_rows = -1, 0
    if c.name != "pretrain":
        c.eval_answers = -1
    if c.name == "stage2":
        c.eval_questions = -1
        c.checkpoint.best_metric = ""


def accelerator(c: ConfigDict, kind: str) -> None:
    """Where a variant of an open model runs, and with what: kind "" = all weights, "lora" or "qlora"."""
    hardware.accelerator(c)
    if kind:
        hardware.lora(c, c.variant.partition("-")[0], quantised=kind == "qlora")


def demo(c: ConfigDict) -> None:
    """Small enough to memorise the hand-crafted records in minutes on two CPU cores; shared with stage 2."""
    hardware.cpu(c)
    # Batches this small do not divide over many devices.
    c.mesh.devices = 1
    c.model.preset = "demo"
    c.tokenizer = "demo"
    c.data.seq_len = 256
    # All of them are trained on: the demo proves that the machine works, not that the model generalises.
    c.data.validation_fraction = 0.0
    c.batch_size = 2
    c.epochs = 24.0
    c.optim.lr = 5e-3
    c.optim.warmup_ratio = 0.05
    c.optim.end_lr_ratio = 0.05
    c.log_every = 10
    c.loss_chunk = 4096


def demo_lora(c: ConfigDict) -> None:
    """The demo on frozen random weights, which know nothing: the adapter is as wide as they are. With stage 2."""
    c.lora.rank = 128
    c.lora.alpha = 128.0
    c.optim.lr = 4e-3
