"""Study: do two stages give a better medical model than one? The claim of arXiv 2409.05732.

    python -m mmed_jax.study --config=two_stage --output=studies/two_stage                 demo: minutes on two cores
    python -m mmed_jax.study --config=two_stage:8b --output=studies/two_stage --config.data_dir=DIR

arm                    what is trained, from the same base weights
base                   nothing
stage 1 only           general medical instructions (configs/stage1.py)
stage 2 only           multiple choice with rationale (configs/stage2.py)
stage 1 then stage 2   both, the second from the weights of the first
both in one stage      the records of both together (data.kind=mixed), with the rate, schedule and epochs of stage 2

Settings besides those of every study (mmed_jax/studies/design.py): stage1 and stage2, the record files of each.

Variants: demo, and those of the stages with their base: 1b 3b 8b 70b, and custom for a base of one's own
(--config.base=FOLDER), each also with -lora and -qlora. The demo's base has random weights after four epochs of the
demo's running text, its questions are those that stage 2 was trained on: it shows that the study works, and how much
was learnt by heart. Sources: every training is a recipe of stage 1 or 2, whose
files name theirs; that "both in one stage" takes the settings of stage 2 is our choice.
"""

from ml_collections import ConfigDict

from configs import stage1
from configs.study_parts import INSTRUCTIONS, QUESTIONS, base_of, expectation, study_settings
from mmed_jax.studies.design import Arm, Claim, Design, Study, benchmarks, train

VARIANTS = stage1.VARIANTS
FILES = {"stage1": (INSTRUCTIONS, "records/stage1.jsonl"), "stage2": (QUESTIONS, "records/stage2.jsonl")}


def get_study(variant: str = "demo") -> Study:
    """The study of one variant; see the table above."""
    return Study(
        question="Does training in two stages, general medical instructions and then multiple choice, give a better "
        "model than either stage alone, and than both together in one stage (arXiv 2409.05732)?",
        settings=study_settings("two_stage", variant, FILES),
        design=design,
        expect=expectation(variant),
    )


def design(c: ConfigDict) -> Design:
    """The five arms."""
    base = base_of(c)
    stage2, both = f"stage2:{c.variant}", {"data.train": (*c.stage1, *c.stage2), "data.kind": "mixed"}
    keys = {"data.train": tuple(c.stage2)}
    # The tokenizer is the base's.
    first = train("stage1", f"stage1:{c.variant}", base, {"data.train": tuple(c.stage1), "tokenizer": ""})
    one, two, mixed = "stage 2 only", "stage 1 then stage 2", "both in one stage"
    return Design(
        arms=(
            Arm("base", base, "as it is"),
            Arm("stage 1 only", first, "general medical instructions"),
            Arm(one, train("stage2-only", stage2, base, keys), "multiple choice with rationale"),
            Arm(two, train("stage2", stage2, first, keys), "one after the other"),
            Arm(mixed, train("mixed", stage2, base, both), "the records of both, mixed"),
        ),
        benchmarks=benchmarks(c),
        claims=(
            Claim("Two stages are better than stage 2 alone", two, one),
            Claim("Two stages are better than both together in one", two, mixed),
            Claim("Two stages are better than stage 1 alone", two, "stage 1 only"),
            Claim("Two stages are better than the base", two, "base"),
        ),
        compared_with=two,
    )
