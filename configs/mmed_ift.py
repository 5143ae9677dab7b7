"""MMed-IFT: multilingual medical instructions for stage 1, after arXiv 2409.05732.

    python -m data_gen build --recipe=mmed_ift --data_dir=raw --output=sets/mmed_ift --model=... --max_usd=...
    python -m mmed_jax.train --config=stage1:8b --config.data.train=sets/mmed_ift/tfds/mmed_ift

From the paper's abstract, all that is public of its data: two sets, MMed-IFT and MMed-IFT-MC, together over 200,000
samples in six languages, made by answer expanding, question-answer pair generation and cross-lingual translation,
beside hand-crafted samples. Everything else is our choice:

  languages  en, zh, ja, ko, fr, es (MMedBench's six with Korean in place of Russian, as KorMedMCQA suggests);
             --recipe.languages=en,zh,ja,ko,fr,es,ru makes it seven
  size       25,000 rows a language, 150,000 in all; MMed-IFT-MC adds the rest
  sources    public sets with a licence to redistribute, or whose terms are said (the card marks them); training splits
             only. MFDS drug information needs --licenses=research, because its terms could not be verified
  expansion  examination questions of en, zh, ja, fr, es (and ru), whose answers are letters or a few words
  pairs      RuMedDaNet passages, PubMedQA abstracts, long answers of MedQuAD, MFDS and Toyhom: three pairs a passage
  translation  of English, Chinese and Spanish long answers into the languages that lack rows

variant  what it is for
""       all of the above
demo     hand-written samples only: 20 rows a language through every method; minutes with any endpoint
"""

from ml_collections import ConfigDict

from data_gen.sets.recipes import base, source, step

VARIANTS = ("", "demo")
TARGET = 25_000

CITATION = """@article{zhou2024mmedift,
  title={Towards Democratizing Multilingual Large Language Models For Medicine Through A Two-Stage Instruction Fine-tuning Approach},
  author={Zhou, Meng and Parmar, Surajsinh and Bhatti, Anubhav},
  journal={arXiv preprint arXiv:2409.05732},
  year={2024}
}"""  # noqa: E501


def get_config(variant: str = "") -> ConfigDict:
    """The recipe of one variant; see the table above."""
    c = base()
    c.name, c.kind = "mmed_ift", "instruction"
    c.title = "MMed-IFT (rebuilt): multilingual medical instructions"
    c.description = (
        "Medical questions with full answers, for general medical instruction tuning. Built from public sources "
        "after the method of arXiv 2409.05732; not the authors' own data, which are not public."
    )
    c.citation = CITATION
    c.languages = ("en", "zh", "ja", "ko", "fr", "es")
    c.source.handcrafted = source(path="@handcrafted/instructions.jsonl", split="")
    if variant == "demo":
        return _demo(c)
    c.targets = ConfigDict({code: TARGET for code in (*c.languages, "ru")})
    _sources(c)
    _steps(c)
    return c


def _sources(c: ConfigDict) -> None:
    s = c.source
    # Long answers, kept as they are.
    s.casimedicos = source("casimedicos", kind="instruction")
    s.medquad = source("medquad")
    s.xlinghealth = source("xlinghealth")
    s.covid_faq = source("covid_faq")
    s.pubmedqa = source("pubmedqa", kind="instruction")
    s.medmcqa = source("medmcqa", kind="instruction", limit=20_000)
    s.toyhom = source("toyhom", limit=20_000)
    s.mfds_edrug = source("mfds_edrug")
    # Questions with short answers and texts: material for the steps.
    s.medqa_us = source("medqa_us", keep=False)
    s.medqa_zh = source("medqa_zh", keep=False)
    s.jmmlu_medical = source("jmmlu_medical", keep=False)
    s.frenchmedmcqa = source("frenchmedmcqa", keep=False)
    # The English copy of HEAD-QA is a machine translation of the Spanish one.
    s.headqa = source("headqa", keep=False, languages=("es",))
    s.rumeddanet = source("rumeddanet", keep=False)
    s.pubmedqa_abstracts = source("pubmedqa", kind="mcq", keep=False)
    c.sources = (
        "handcrafted",
        "casimedicos",
        "medquad",
        "xlinghealth",
        "covid_faq",
        "pubmedqa",
        "medmcqa",
        "toyhom",
        "mfds_edrug",
        "medqa_us",
        "medqa_zh",
        "jmmlu_medical",
        "frenchmedmcqa",
        "headqa",
        "rumeddanet",
        "pubmedqa_abstracts",
    )


def _steps(c: ConfigDict) -> None:
    examinations = ("medqa_us", "medqa_zh", "jmmlu_medical", "frenchmedmcqa", "headqa", "rumeddanet")
    c.step.expand = step("answer_expanding", examinations, limit=8000, fill=True)
    c.step.qa = step(
        "qa_generation",
        ("rumeddanet", "pubmedqa_abstracts", "medquad", "mfds_edrug"),
        limit=2000,
        fill=True,
        options={"pairs": 3},
    )
    translated = ("casimedicos", "medquad", "xlinghealth", "pubmedqa", "medmcqa", "expand", "qa", "toyhom")
    c.step.translate = step("translation", translated, fill=True)
    c.steps = ("expand", "qa", "translate")


def _demo(c: ConfigDict) -> ConfigDict:
    c.source.questions = source(path="@handcrafted/mcq.jsonl", split="", keep=False)
    c.sources = ("handcrafted", "questions")
    c.step.expand = step("answer_expanding", ("questions",), limit=10)
    c.step.qa = step("qa_generation", ("handcrafted",), limit=5, options={"pairs": 2, "min_chars": 40})
    c.step.translate = step("translation", ("expand",), languages=("ko", "fr"), limit=2)
    c.steps = ("expand", "qa", "translate")
    c.validation_fraction = 0.1
    return c
