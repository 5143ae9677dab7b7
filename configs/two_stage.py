"""Study: do two stages give a better medical model than one? The claim of arXiv 2409.05732.

    python -m mmed_jax.study --config=two_stage --output=studies/two_stage                 demo: minutes on two cores
    python -m mmed_jax.study --config=two_stage:8b --output=studies/two_stage --config.data_dir=DIR

arm                     what is trained, from the same base weights
base                    nothing
stage 1 only            general medical instructions (configs/stage1.py)
stage 2 only            multiple choice with rationale (configs/stage2.py)
stage 1 then stage 2    both, the second from the weights of the first
both in one stage       the records of both together (data.kind=mixed), with the length, rate and schedule of stage 2

Settings besides those of every study (mmed_jax/studies/design.py): stage1 and stage2, the record files of each.

Variants: demo, and those of the stages with their base: 1b 3b 8b 70b, also with -lora and -qlora. The demo's base has
random weights after four epochs of the demo's running text, its questions are those that stage 2 was trained on: it
shows that the study works, and how much was learnt by heart. Sources: every training is a recipe of stage 1 or 2, whose
files name theirs; that "both in one stage" takes the settings of stage 2 is our choice.
"""

from ml_collections import ConfigDict

from configs import hardware, stage1
from mmed_jax.studies.design import Arm, Claim, Design, Model, Study, benchmarks, settings, train

VARIANTS = stage1.VARIANTS
# How many a training is planned for unless --topology says otherwise.
GPUS = {"1b": 1, "3b": 2, "8b": 8, "70b": 32}


def get_study(variant: str = "demo") -> Study:
    """The study of one variant; see the table above."""
    c = settings("two_stage", variant)
    if variant.startswith("demo"):
        demo(c)
        c.stage1, c.stage2 = ("data_gen/handcrafted/instructions.jsonl",), ("data_gen/handcrafted/mcq.jsonl",)
    else:
        of_size(c)
        c.stage1, c.stage2 = ("records/stage1.jsonl",), ("records/stage2.jsonl",)
    return Study(
        question="Does training in two stages, general medical instructions and then multiple choice, give a better "
        "model than either stage alone, and than both together in one stage (arXiv 2409.05732)?",
        settings=c,
        design=design,
        expect="The demo asks the questions that it was trained on: it measures what was learnt by heart."
        if variant.startswith("demo")
        else "",
    )


def demo(c: ConfigDict) -> None:
    """What the demos of all studies are asked."""
    c.data = ("data_gen/handcrafted/mcq.jsonl",)
    c.mode = "loglikelihood"


def of_size(c: ConfigDict) -> None:
    """What studies of an open model share: its weights, MMedBench's test split, where trainings are planned for."""
    size = c.variant.partition("-")[0]
    c.base = hardware.MODELS[size][0]
    c.benchmark, c.data_dir = "mmedbench", "benchmarks"
    c.topology = {"1b": "gpu:1xh100-80g", "3b": "gpu:2xh100-80g", "8b": "gpu:8xh100-80g", "70b": "gpu:32xh100-80g"}[
        size
    ]


def base_of(c: ConfigDict) -> Model:
    """The model that all arms start from: a folder, or for the demos a short training on running text."""
    return c.base or train("base", "pretrain:demo", "", {"seed": 0, "epochs": 4.0})


def design(c: ConfigDict) -> Design:
    """The five arms."""
    base = base_of(c)
    stage1_keys, stage2_keys = {"data.train": tuple(c.stage1)}, {"data.train": tuple(c.stage2)}
    mixed_keys = {"data.train": (*c.stage1, *c.stage2), "data.kind": "mixed"}
    # The tokenizer is the base's.
    first = train("stage1", f"stage1:{c.variant}", base, {**stage1_keys, "tokenizer": ""})
    one, two, both = "stage 2 only", "stage 1 then stage 2", "both in one stage"
    return Design(
        arms=(
            Arm("base", base, "as it is"),
            Arm("stage 1 only", first, "general medical instructions"),
            Arm(one, train("stage2-only", f"stage2:{c.variant}", base, stage2_keys), "multiple choice with rationale"),
            Arm(two, train("stage2", f"stage2:{c.variant}", first, stage2_keys), "one after the other"),
            Arm(both, train("mixed", f"stage2:{c.variant}", base, mixed_keys), "the records of both, mixed"),
        ),
        benchmarks=benchmarks(c),
        claims=(
            Claim("Two stages are better than stage 2 alone", two, one),
            Claim("Two stages are better than both together in one", two, both),
            Claim("Two stages are better than stage 1 alone", two, "stage 1 only"),
            Claim("Two stages are better than the base", two, "base"),
        ),
        compared_with=two,
    )
