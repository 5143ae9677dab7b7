"""MMedBench from its sources, after arXiv 2402.13963: questions with rationale and topic, in the files of MMedBench.

    python -m data_gen build --recipe=mmedbench --data_dir=raw --output=benchmarks/mmedbench --model=... --max_usd=...
    python -m mmed_jax.evaluate --model=DIR --benchmark=mmedbench --data_dir=benchmarks --output=results
    python -m mmed_jax.train --config=stage2:8b --config.data.train=benchmarks/mmedbench

Of the paper: the six sources, their official training and test splits with development splits left out, Russian without
its passages, Spanish HEAD-QA alone, rationales by a model that is given question, options and key, the 21 topics, the
three criteria of the check, the files and their keys.

Not published, and ours here:
  Japanese   IgakuQA has no splits. The original has 1,590 and 199 of 2,000 problems; here, shares of 8:1:1 by a hash
             of the question, the middle one left out as the other sources' development splits are
  prompts    those of data_gen/prompts (rationale, topics)
  test       its rationales are made only when they are asked for: no model is shown a test question's answer before
  licence    IgakuQA states none and is left out, whatever --licenses says, without --recipe.licenses_also="none stated"

variant  languages
""       English, Chinese, Japanese, French, Russian, Spanish
ko       and Korean: KorMedMCQA, non-commercial (--licenses=research); not of the paper
demo     seven languages of hand-written questions, divided 3:1
"""

from typing import Any

from ml_collections import ConfigDict

from data_gen.sets.recipes import base, source, step
from mmed_jax.data.records.schema import LANGUAGES

VARIANTS = ("", "ko", "demo")
SIX: dict[str, dict[str, Any]] = {
    "medqa_us": {"prefer": "4_options"},
    "medqa_zh": {"prefer": "4_options"},
    "igakuqa": {"divide": (8, 1, 1), "skip": ("_translate", "_metadata")},
    "frenchmedmcqa": {},
    "rumeddanet": {"closed_book": True, "skip": ("private_test",)},
    "headqa": {"languages": ("es",)},
}
CITATION = """@article{qiu2024mmedlm,
  title={Towards Building Multilingual Language Model for Medicine},
  author={Qiu, Pengcheng and Wu, Chaoyi and Zhang, Xiaoman and Lin, Weixiong and Wang, Haicheng and Zhang, Ya and Wang, Yanfeng and Xie, Weidi},
  journal={arXiv preprint arXiv:2402.13963},
  year={2024}
}"""  # noqa: E501


def get_config(variant: str = "") -> ConfigDict:
    """The recipe of one variant; see the table above."""
    c = base()
    c.name, c.kind, c.format = "mmedbench", "mcq", "mmedbench"
    c.title = "MMedBench (rebuilt): multilingual medical questions with rationale"
    c.description = (
        "Medical examination questions in their official splits, with rationales and topics. Built from the public "
        "sources of MMedBench after arXiv 2402.13963; its own rationales and its Japanese split are not in it."
    )
    c.citation = CITATION
    c.languages = ("en", "zh", "ja", "fr", "ru", "es")
    c.validation_fraction = 0.0
    sources: dict[str, dict[str, Any]] = {
        name: {"adapter": name, "kind": "mcq", **values} for name, values in SIX.items()
    }
    if variant == "ko":
        c.languages += ("ko",)
        sources["kormedmcqa"] = {"adapter": "kormedmcqa", "kind": "mcq"}
    if variant == "demo":
        c.languages = LANGUAGES
        sources = {"handcrafted": {"path": "@handcrafted/mcq.jsonl", "divide": (3, 0, 1)}}
    for name, values in sources.items():
        c.source[name] = source(split="train", **values)
        c.source[f"{name}_test"] = source(split="test", **values)
    train, test = tuple(sources), tuple(f"{name}_test" for name in sources)
    c.sources = (*train, *test)
    replace = {"replace": True} if variant == "demo" else {}
    c.step.rationale = step("rationale", train, options=replace)
    # For those who want the explanations of Test as well: --recipe.steps=rationale,rationale_test,topics
    c.step.rationale_test = step("rationale", test, options=replace, test_answers=True)
    c.step.topics = step("topics", c.sources)
    c.steps = ("rationale", "topics")
    return c
