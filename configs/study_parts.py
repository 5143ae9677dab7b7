"""What the recipes of studies share: demos, the models of a size, the base of all arms."""

from collections.abc import Mapping

from ml_collections import ConfigDict

from configs import hardware
from mmed_jax.common.errors import UserError
from mmed_jax.studies.design import Model, settings, train

SIZES = ("1b", "3b", "8b", "70b")
VARIANTS = ("demo", *SIZES, "custom")
INSTRUCTIONS, QUESTIONS = "data_gen/handcrafted/instructions.jsonl", "data_gen/handcrafted/mcq.jsonl"
# How many 80 GB GPUs a training is planned for unless --topology says otherwise.
GPUS = {"1b": 1, "3b": 2, "8b": 8, "70b": 32}
EXPECT = (
    "The demo asks the questions that it was trained on: it measures what was learnt by heart. They are the same in "
    "all languages, so that p over all of them together is too small."
)


def is_demo(variant: str) -> bool:
    """Whether a variant runs on any machine in minutes."""
    return variant.startswith("demo")


def study_settings(name: str, variant: str, files: Mapping[str, tuple[str, str]]) -> ConfigDict:
    """The settings of a study: of a demo the questions by log-likelihood, else MMedBench's test split and open weights.

    Args:
      files: {key of the recipe's own: (record file of the demo, of the other variants)}.
    """
    c = settings(name, variant)
    demo = is_demo(variant)
    for key, (small, large) in files.items():
        c[key] = (small if demo else large,)
    if demo:
        c.data, c.mode = (QUESTIONS,), "loglikelihood"
        return c
    c.benchmark, c.data_dir = "mmedbench", "benchmarks"
    size = variant.partition("-")[0]
    if size == "custom":  # the user names the base, and where it is to run
        return c
    c.base = hardware.MODELS[size][0]
    c.topology = f"gpu:{GPUS[size]}xh100-80g"
    return c


def base_of(c: ConfigDict, recipe: str = "pretrain:demo") -> Model:
    """What all arms start from: config.base, or for the demos four epochs of a recipe from random weights.

    Raises UserError: neither a demo nor a base.
    """
    if not c.base and not is_demo(c.variant):
        raise UserError("config.base is empty: name the model that all arms start from, --config.base=FOLDER")
    return c.base or train("base", recipe, "", {"seed": 0, "epochs": 4.0})


def expectation(variant: str) -> str:
    """What a reader of a demo's report should know."""
    return EXPECT if is_demo(variant) else ""
