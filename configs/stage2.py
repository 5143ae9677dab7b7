"""Stage 2: multiple choice with rationale (MMed-IFT-MC, arXiv 2409.05732), from the weights of stage 1.

    python -m mmed_jax.train --config=stage2        demo: starts from runs/stage1-demo
    python -m mmed_jax.train --config=stage2:8b --config.data.train=records/stage2.jsonl

Each question gives two samples, one with the rationale before the answer and one with the answer alone
(arXiv 2402.13963, finetune/train.py of MMedLM); config.data.modes chooses.

variant  starts from            batch x length   lr, schedule                    length
demo     runs/stage1-demo       2 x 256          4e-3, cosine, warm-up 5 %       14 epochs
1b       runs/stage1-1b         128 x 2048       1e-5, cosine, warm-up 3 %       5 epochs
3b       runs/stage1-3b         128 x 2048       1e-5, cosine, warm-up 3 %       5 epochs
8b       runs/stage1-8b         128 x 2048       5e-6, cosine, warm-up 3 %       5 epochs
70b      runs/stage1-70b        128 x 2048       2e-6, cosine, warm-up 3 %       5 epochs

Hardware as in stage 1. Sources: batch, length, schedule, epochs, no weight decay, clipping: full fine-tuning on
MMedBench in arXiv 2402.13963 (its learning rate is 1e-6, after 25 B tokens of continued pretraining); the learning
rates are our choice.

Expect (demo): one to two minutes, final loss below 0.01, at least 95 % of the trained questions answered rightly.
"""

from ml_collections import ConfigDict

from configs import hardware, stage1
from mmed_jax.config import base

VARIANTS = stage1.VARIANTS
LEARNING_RATE = {"1b": 1e-5, "3b": 1e-5, "8b": 5e-6, "70b": 2e-6}


def get_config(variant: str = "demo") -> ConfigDict:
    """The config of one variant; see the table above."""
    c = base()
    c.name, c.variant = "stage2", variant
    c.run_dir = f"runs/stage2-{variant}"
    # Weights only: stage 2 has its own schedule from step 0. The newest good checkpoint of that run is taken.
    c.init_from = f"runs/stage1-{variant}"
    c.data.kind = "mcq"
    if variant == "demo":
        stage1.demo(c)
        c.tokenizer = ""
        c.epochs = 14.0
        c.optim.lr = 4e-3
        c.data.train = ("data_gen/handcrafted/mcq.jsonl",)
        return c
    hardware.accelerator(c)
    c.data.train = ("records/stage2.jsonl",)
    c.data.seq_len = 2048
    c.batch_size = 128
    c.epochs = 5.0
    c.optim.lr = LEARNING_RATE[variant]
    c.eval_every = 200
    return c
