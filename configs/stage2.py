"""Stage 2: multiple choice with rationale (MMed-IFT-MC, arXiv 2409.05732), from the weights of stage 1.

    python -m mmed_jax.train --config=stage2        demo: starts from runs/stage1-demo
    python -m mmed_jax.train --config=stage2:8b --config.data.train=records/stage2.jsonl

Each question gives two samples, one with the rationale before the answer and one with the answer alone
(arXiv 2402.13963, finetune/train.py of MMedLM); config.data.modes chooses.

variant  starts from            batch x length   lr, schedule                    length
demo     runs/stage1-demo       2 x 256          4e-3, cosine, warm-up 5 %       11 epochs
1b       runs/stage1-1b         128 x 2048       1e-5, cosine, warm-up 3 %       3 epochs
3b       runs/stage1-3b         128 x 2048       1e-5, cosine, warm-up 3 %       3 epochs
8b       runs/stage1-8b         128 x 2048       5e-6, cosine, warm-up 3 %       3 epochs
70b      runs/stage1-70b        128 x 2048       2e-6, cosine, warm-up 3 %       3 epochs

custom   your own model, by default runs/stage1-custom; values from its size (configs/custom.py), also -lora, -qlora

demo-lora     runs/stage1-demo-lora   2 x 256       1.5e-3, cosine, warm-up 5 %     24 epochs
1b-lora       runs/stage1-1b-lora     128 x 2048    1e-4, cosine, warm-up 3 %       3 epochs
3b-lora       runs/stage1-3b-lora     128 x 2048    1e-4, cosine, warm-up 3 %       3 epochs
8b-lora       runs/stage1-8b-lora     128 x 2048    5e-5, cosine, warm-up 3 %       3 epochs
70b-lora      runs/stage1-70b-lora    128 x 2048    2e-5, cosine, warm-up 3 %       3 epochs
8b-lora-paper models/Meta-Llama-3-8B  128 x 2048    2e-5, cosine, warm-up 3 %       3 epochs

-qlora in place of -lora: the same with the frozen weights in 4 bits, from runs/stage1-...-qlora. The adapter of stage 1
is trained on. 8b-lora-paper is the LoRA of arXiv 2402.13963 (MMedLM, finetune/LoRA_finetuning.sh and train.py) on the
pretrained model and with that paper's prompts: rank 16, dropout 0.05, q and v, batch 128, 3 epochs, learning rate 2e-5
in the script (its README says 1e-6). Its alpha is not published (train.py reads one that it never sets): 32 here, 2 x
rank. Nor is whether gradients were clipped: at 1.0 here, as everywhere.

Hardware as in stage 1. With a source: of 8b learning rate, batch and epochs, which are those of HuatuoGPT-o1-8B's
fine-tuning (arXiv 2412.18925); of all variants length, schedule, no weight decay and clipping, which are those of full
fine-tuning on MMedBench in arXiv 2402.13963 (batch 128 as well; 1e-6 for 5 epochs, after 25 B tokens of continued
pretraining). Our choice: learning rates and epochs of the other sizes, and of adapters, ten times the rates of full
fine-tuning (see stage 1).

Epochs are no default to trust: others saw an 8B fall from 51.0 on MedQA, untrained, to 43.0, 23.9 and 12.6 after epochs
1, 2 and 3 on one small set, while its training loss fell (results.md of EPFLiGHT/meditron-apertus). So the variants of
open models are evaluated before the first step, every 200 steps and at every epoch, with the accuracy on 500 validation
questions by log-likelihood, by which the best checkpoint is chosen and kept; the last lines say where it lay, and
`export --best` takes it. 500 questions leave about +-4 points: evaluate what it chooses on a whole benchmark. (On
a CPU custom asks and answers nothing by itself, since it takes long: --config.eval_questions, --config.eval_answers.)

Expect (demo): one to two minutes, final loss below 0.1, at least 95 % of the trained questions answered rightly.
Expect (demo-lora): three to five minutes, final loss about 0.7, likewise.
"""

from ml_collections import ConfigDict

from configs import hardware, stage1
from mmed_jax.config import base

VARIANTS = (*stage1.VARIANTS, "8b-lora-paper")
LEARNING_RATE = {"1b": 1e-5, "3b": 1e-5, "8b": 5e-6, "70b": 2e-6}


def get_config(variant: str = "demo") -> ConfigDict:
    """The config of one variant; see the table above."""
    c = base()
    c.name, c.variant = "stage2", variant
    c.run_dir = f"runs/stage2-{variant}"
    # Weights only: stage 2 has its own schedule from step 0. The newest good checkpoint of that run is taken.
    c.init_from = f"runs/stage1-{variant}"
    c.data.kind = "mcq"
    if variant in ("demo", "demo-lora"):
        stage1.demo(c)
        c.tokenizer = ""
        c.epochs = 11.0
        c.optim.lr = 4e-3
        if variant == "demo-lora":
            stage1.demo_lora(c)
            # With 4e-3, as in stage 1, the adapter that is there already is destroyed.
            c.optim.lr = 1.5e-3
            c.epochs = 24.0
        c.data.train = ("data_gen/handcrafted/mcq.jsonl",)
        return c
    size, _, kind = variant.partition("-")
    stage1.accelerator(c, "lora" if kind == "lora-paper" else kind)
    c.data.train = ("records/stage2.jsonl",)
    c.epochs = 3.0
    stage1.evaluations(c)
    if size == "custom":
        stage1.leave_open(c)
        return c
    c.data.seq_len = 2048
    c.batch_size = 128
    c.optim.lr = LEARNING_RATE[size] * (stage1.LORA_FACTOR if kind else 1)
    c.eval_answers = 5
    c.eval_questions = 500
    c.checkpoint.best_metric = "validation/accuracy"
    if kind == "lora-paper":
        paper(c)
    return c


def paper(c: ConfigDict) -> None:
    """The published settings of arXiv 2402.13963's LoRA; see the table above for what is not known of them."""
    c.init_from = hardware.MODELS["8b"][0]
    c.data.prompt_family = "mmedbench"
    c.lora.dropout = 0.05
    c.lora.targets = ("q", "v")
    c.optim.lr = 2e-5
