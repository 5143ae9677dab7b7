"""MMed-IFT-MC: multiple choice with rationale for stage 2, after arXiv 2409.05732.

    python -m data_gen build --recipe=mmed_ift_mc --data_dir=raw --output=sets/mmed_ift_mc --licenses=research ...
    python -m mmed_jax.train --config=stage2:8b --config.data.train=sets/mmed_ift_mc/tfds/mmed_ift_mc

Public of the paper's set: its name, that it is multiple choice for task-specific instruction tuning in six languages,
and MMedBench and KorMedMCQA as benchmarks of its kind. Our choices: MMedBench's and KorMedMCQA's training splits are
the base, with MMedBench's own rationales; rationales are generated where there is none; several right answers are kept
as they are; validation and test splits are never read (pass them with --benchmarks to be sure).

variant  sources                                                                    licence filter
""       MMedBench and KorMedMCQA (both non-commercial), hand-written samples       research
open     public examination sets that may be redistributed; Korean by translation   open
demo     hand-written samples only, rationales written anew                         open
"""

from ml_collections import ConfigDict

from configs.mmed_ift import CITATION
from data_gen.sets.recipes import base, source, step

VARIANTS = ("", "open", "demo")
OPEN = (
    "casimedicos",
    "medqa_us",
    "medqa_zh",
    "medmcqa",
    "jmmlu_medical",
    "frenchmedmcqa",
    "headqa",
    "rumeddanet",
    "pubmedqa",
)


def get_config(variant: str = "") -> ConfigDict:
    """The recipe of one variant; see the table above."""
    c = base()
    c.name, c.kind = "mmed_ift_mc", "mcq"
    c.title = "MMed-IFT-MC (rebuilt): multilingual medical multiple choice with rationale"
    c.description = (
        "Medical multiple-choice questions with the reasoning that leads to the right options. Built from public "
        "sources after the method of arXiv 2409.05732; not the authors' own data, which are not public."
    )
    c.citation = CITATION
    c.source.handcrafted = source(path="@handcrafted/mcq.jsonl", split="")
    if variant == "demo":
        c.sources, c.steps = ("handcrafted",), ("rationale",)
        c.step.rationale = step("rationale", ("handcrafted",), limit=5, options={"replace": True})
        c.validation_fraction = 0.1
        return c
    if variant == "open":
        for name in OPEN:
            c.source[name] = source(name, kind="mcq")
        c.source.headqa.languages = ("es",)
        c.source.medmcqa.limit = 30_000
        c.sources = ("handcrafted", *OPEN)
        c.step.rationale = step("rationale", c.sources)
        # There is no open Korean multiple choice: translated, with their rationales, from English.
        c.step.translate = step("translation", ("casimedicos", "medqa_us", "pubmedqa"), languages=("ko",), fill=True)
        c.targets = ConfigDict({"ko": 5000})
        c.steps = ("rationale", "translate")
        return c
    c.source.mmedbench = source("mmedbench")
    c.source.kormedmcqa = source("kormedmcqa")
    c.sources = ("handcrafted", "mmedbench", "kormedmcqa")
    c.step.rationale = step("rationale", c.sources)
    c.steps = ("rationale",)
    return c
