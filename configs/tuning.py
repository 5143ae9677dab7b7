"""Study: zero-shot, an adapter (LoRA) or all weights? The three ways in which arXiv 2402.13963 compares models.

    python -m mmed_jax.study --config=tuning --output=studies/tuning                       demo: minutes on two cores
    python -m mmed_jax.study --config=tuning:8b --output=studies/tuning --config.data_dir=DIR

arm         what is trained on the multiple-choice records (configs/stage2.py), from the same base weights
zero-shot   nothing
LoRA        an adapter, as stage2:SIZE-lora has it
LoRA (the paper's)   only 8b: rank, modules, dropout and learning rate that the paper publishes (stage2:8b-lora-paper)
full        all weights, as stage2:SIZE has it

Settings besides those of every study: stage2, the record files (the paper's: MMedBench's training split).

Variants: demo 1b 3b 8b 70b, custom (--config.base=FOLDER). Those of open models are trained on and asked in the paper's
prompts (prompt family mmedbench, the answer alone), so that the paper's rows stand in the same table. The demo's base
has random weights after four epochs of the demo's running text. Sources: those of configs/stage2.py.
"""

from ml_collections import ConfigDict

from configs.study_parts import QUESTIONS, VARIANTS, base_of, expectation, is_demo, study_settings
from mmed_jax.studies.design import Arm, Claim, Design, Study, benchmarks, train

__all__ = ["VARIANTS", "get_study"]
FILES = {"stage2": (QUESTIONS, "records/mmedbench_train.jsonl")}


def get_study(variant: str = "demo") -> Study:
    """The study of one variant; see the table above."""
    c = study_settings("tuning", variant, FILES)
    if not is_demo(variant):
        c.prompt_family = "mmedbench"
    return Study(
        question="How much does tuning on multiple choice give over asking the model as it is, and does an adapter on "
        "frozen weights give as much as training all of them (arXiv 2402.13963)?",
        settings=c,
        design=design,
        expect=expectation(variant),
    )


def design(c: ConfigDict) -> Design:
    """The three arms, of 8b four."""
    base = base_of(c)
    keys = {"data.train": tuple(c.stage2)}
    if c.prompt_family:
        keys["data.prompt_family"] = c.prompt_family
    arms = [
        Arm("zero-shot", base, "as it is"),
        Arm("LoRA", train("lora", f"stage2:{c.variant}-lora", base, keys), "an adapter on frozen weights"),
    ]
    if c.variant == "8b":
        paper = train("lora-paper", "stage2:8b-lora-paper", base, keys)
        arms.append(Arm("LoRA (the paper's)", paper, "with the settings that the paper publishes"))
    arms.append(Arm("full", train("full", f"stage2:{c.variant}", base, keys), "all weights"))
    return Design(
        arms=tuple(arms),
        benchmarks=benchmarks(c),
        claims=(
            Claim("An adapter is better than the model as it is", "LoRA", "zero-shot"),
            Claim("Training all weights is better than the model as it is", "full", "zero-shot"),
            Claim("Training all weights is better than an adapter", "full", "LoRA"),
        ),
    )
