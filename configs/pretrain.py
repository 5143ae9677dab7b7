"""Continued pretraining on running text (MMedC, arXiv 2402.13963), before stage 1.

    python -m mmed_jax.train --config=pretrain        demo: embedded texts, any machine
    python -m mmed_jax.train --config=pretrain:8b --config.data.train=tables/mmedc
    python -m mmed_jax.train --config=stage1:8b --config.init_from=runs/pretrain-8b

variant  hardware it is meant for  weights                    batch x length   lr, schedule               length
demo     2 CPU cores               random, 1.3 M parameters   2 x 256          5e-3, cosine, warm-up 5 %  24 epochs
1b       as stage 1                models/Llama-3.2-1B        512 x 2048       2e-5, cosine, warm-up 1 %  15,000 steps
3b       as stage 1                models/Llama-3.2-3B        512 x 2048       2e-5, cosine, warm-up 1 %  15,000 steps
8b       as stage 1                models/Meta-Llama-3-8B     512 x 2048       2e-5, cosine, warm-up 1 %  15,000 steps
70b      as stage 1                models/Meta-Llama-3-70B    512 x 2048       2e-5, cosine, warm-up 1 %  15,000 steps

custom     your own model, named by config.init_from; one epoch; values from its size (configs/custom.py), also with
           -lora and -qlora

demo-lora  2 CPU cores             random, frozen             2 x 256          4e-3, cosine, warm-up 5 %  40 epochs
8b-lora    see docs/lora.md        models/Meta-Llama-3-8B     512 x 2048       2e-4, cosine, warm-up 1 %  15,000 steps

1b-lora, 3b-lora and 70b-lora likewise; -qlora in place of -lora holds the frozen weights in 4 bits (lora.base=nf4).

Sources. Published for MMedLM and MMedLM 2 (pretrain/*.sh of MMedLM, model cards of MMedLM, MMedLM 2 and its 1.8B):
batch 512, length 2048, 15,000 steps (15.7 billion positions), AdamW, learning rate 2e-5, cosine, warm-up 1 %, weight
decay 0.01, clipping at 1.0, loss on all tokens; texts cut into pieces that overlap by a quarter, short ones padded.
Not published: any of these for MMed-Llama 3 and MMed-Llama 3.1 70B (of the first only that its checkpoint is of step
6,200), AdamW's betas and epsilon (here those of mmed_jax/config/defaults.py), the shares of languages and sources, and
whether general text was replayed. So ours are: this learning rate for all four sizes, languages in proportion to their
rows (config.data.temperature=1), no replay, no overlap, and rows that documents share without seeing each other
(docs/corpus.md).

Adapters are our choice altogether: rank 64 and ten times the learning rate. An adapter takes in less of a corpus than
full training does, and forgets less ("LoRA Learns Less and Forgets Less", arXiv 2405.09673, which takes ranks up to 256
for continued pretraining).

512 rows are four parts of 128, so that a part needs the memory of stage 1's step; with more than 128 chips
--config.grad_accum may be less. Adapters take a row a device at a time, as in stage 1. --config.data.seq_len must be
that of the tables.

Expect (demo): under a minute, final loss below 0.1: the texts are known by heart.
Expect (demo-lora): one to two minutes, final loss about 0.5 (see stage 1).
"""

from ml_collections import ConfigDict

from configs import hardware, stage1
from mmed_jax.config import base

VARIANTS = stage1.VARIANTS
LEARNING_RATE = 2e-5
LORA_FACTOR = 10


def get_config(variant: str = "demo") -> ConfigDict:
    """The config of one variant; see the table above."""
    c = base()
    c.name, c.variant = "pretrain", variant
    c.run_dir = f"runs/pretrain-{variant}"
    c.data.kind = "document"
    if variant in ("demo", "demo-lora"):
        stage1.demo(c)
        if variant == "demo-lora":
            stage1.demo_lora(c)
            c.epochs = 40.0
        # Two dozen rows, each seen in every epoch.
        c.data.max_repeats = 50.0
        c.data.train = ("mmed_jax/assets/documents/demo.jsonl",)
        return c
    size, _, kind = variant.partition("-")
    stage1.accelerator(c, kind)
    if kind:
        c.lora.rank = 64
    else:
        c.grad_accum = 4
    c.data.train = ("tables/mmedc",)
    c.data.validation_fraction = 0.001
    c.optim.warmup_ratio = 0.01
    c.optim.weight_decay = 0.01
    c.eval_at_start = True
    c.eval_every = 500
    c.eval_rows = 2048
    if size == "custom":
        stage1.leave_open(c)
        c.epochs = 1.0
        return c
    c.init_from = hardware.MODELS[size][0]
    c.data.seq_len = 2048
    c.batch_size = 512
    c.steps = 15_000
    c.optim.lr = LEARNING_RATE * (LORA_FACTOR if kind else 1)
    return c
