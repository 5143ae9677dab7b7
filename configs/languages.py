"""Study: one language, or all together? Each language's records alone against the records of all of them.

    python -m mmed_jax.study --config=languages --output=studies/languages                 demo: minutes on two cores
    python -m mmed_jax.study --config=languages:8b --output=studies/languages --config.data_dir=DIR

arm             what is trained on multiple choice (configs/stage2.py), from the same base weights
base            nothing
all languages   the records of all languages in the files
only LANGUAGE   its records alone (data.languages=CODE); an arm for each of `each`

Settings besides those of every study: stage2 (record files), each (language codes). Every arm is asked in all
languages: its own column says what the others add, the other columns what one language gives to them.

Every record is seen equally often in all arms (the recipe's epochs), so an arm of one language takes fewer steps. With
--train.steps=N --train.epochs=0 all arms take equally many.

Variants: demo 1b 3b 8b 70b, custom (--config.base=FOLDER); the demo trains English and Chinese alone, others the six
languages of MMedBench. The demo's base has random weights after four epochs of the demo's running text. Sources: the
trainings' are those of configs/stage2.py; the comparison is our choice.
"""

from ml_collections import ConfigDict

from configs.study_parts import QUESTIONS, VARIANTS, base_of, expectation, is_demo, study_settings
from mmed_jax.common.errors import UserError, nearest
from mmed_jax.data.records.schema import LANGUAGE_NAMES
from mmed_jax.studies.design import Arm, Claim, Design, Study, benchmarks, train

__all__ = ["VARIANTS", "get_study"]
FILES = {"stage2": (QUESTIONS, "records/stage2.jsonl")}


def get_study(variant: str = "demo") -> Study:
    """The study of one variant; see the table above."""
    c = study_settings("languages", variant, FILES)
    c.each = ("en", "zh") if is_demo(variant) else ("en", "zh", "ja", "fr", "ru", "es")
    return Study(
        question="Is a model that is trained on all languages together better in each of them than one that is trained "
        "on that language alone?",
        settings=c,
        design=design,
        expect=expectation(variant),
    )


def design(c: ConfigDict) -> Design:
    """The base, all languages, and an arm for each language. Raises UserError for one that is not known."""
    base, every = base_of(c), "all languages"
    keys = {"data.train": tuple(c.stage2)}
    arms = [Arm("base", base, "as it is"), Arm(every, train("all", f"stage2:{c.variant}", base, keys), "all records")]
    claims = []
    for code in c.each:
        if code not in LANGUAGE_NAMES:
            raise UserError(f"config.each: language '{code}' is unknown{nearest(code, LANGUAGE_NAMES)}")
        name = LANGUAGE_NAMES[code]
        alone = train(f"only-{code}", f"stage2:{c.variant}", base, {**keys, "data.languages": (code,)})
        arms.append(Arm(f"only {name}", alone, f"the records in {name}"))
        claims.append(Claim(f"All languages are better in {name} than {name} alone", every, f"only {name}", code))
    return Design(tuple(arms), benchmarks(c), tuple(claims), compared_with=every)
