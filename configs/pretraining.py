"""Study: does continued pretraining on a medical corpus help, and merging after it? arXiv 2402.13963, 2604.06903.

    python -m mmed_jax.study --config=pretraining --output=studies/pretraining             demo: minutes on two cores
    python -m mmed_jax.study --config=pretraining:8b --output=studies/pretraining --config.data_dir=DIR \\
        --config.corpus=tables/mmedc --config.texts=held_out.jsonl

arm                    what is done, from the same base weights
base                   nothing
corpus                 continued pretraining on the corpus (configs/pretrain.py)
corpus merged          the mean of the base's weights and of those after the corpus (python -m mmed_jax.merge)
tuned                  multiple choice (configs/stage2.py) on the base
corpus tuned           multiple choice on the weights after the corpus
corpus merged tuned    multiple choice on the mean

Settings besides those of every study: corpus (packed tables, or files of documents), stage2 (record files), weights (of
the base and the pretrained in the mean, 0.5,0.5). With texts= every arm is also scored on held-out texts, in bits per
byte by language. A base of one's own is a Hugging Face folder.

Variants: demo 1b 3b 8b 70b, custom (--config.base=FOLDER). The demo's base has random weights after four epochs of the
demo's instructions; its questions and texts are those that it is trained on. Sources: MMedLM is tuned on MMedBench's
training split after the corpus (2402.13963); that merging follows continued pretraining is 2604.06903's subject, but
which models are averaged with which weights, and that tuning comes after the mean, are our choice: of that paper only
the abstract was at hand.
"""

from ml_collections import ConfigDict

from configs.study_parts import QUESTIONS, VARIANTS, base_of, expectation, is_demo, study_settings
from mmed_jax.studies.design import Arm, Claim, Design, Step, Study, benchmarks, export, merge, train

__all__ = ["VARIANTS", "get_study"]
TEXTS = "mmed_jax/assets/documents/demo.jsonl"
FILES = {"corpus": (TEXTS, "tables/mmedc"), "stage2": (QUESTIONS, "records/stage2.jsonl")}


def get_study(variant: str = "demo") -> Study:
    """The study of one variant; see the table above."""
    c = study_settings("pretraining", variant, FILES)
    c.weights = "0.5,0.5"
    if is_demo(variant):
        c.texts = (TEXTS,)
    return Study(
        question="Does continued pretraining on a medical corpus make a better medical model, before and after tuning "
        "(arXiv 2402.13963), and does averaging its weights with the base's help (arXiv 2604.06903)?",
        settings=c,
        design=design,
        expect=expectation(variant),
    )


def design(c: ConfigDict) -> Design:
    """The six arms."""
    base = base_of(c, "stage1:demo")
    read = train("corpus", f"pretrain:{c.variant}", base, {"data.train": tuple(c.corpus), "tokenizer": ""})
    # Folders of one dtype, float32: what is trained on from there is not rounded before.
    base_folder = export("base-folder", base, {"dtype": "float32"}) if isinstance(base, Step) else base
    merged = merge("merged", (base_folder, export("corpus-folder", read, {"dtype": "float32"})), c.weights)
    keys = {"data.train": tuple(c.stage2)}

    def tuned(name, start):
        return train(name, f"stage2:{c.variant}", start, keys)

    return Design(
        arms=(
            Arm("base", base, "as it is"),
            Arm("corpus", read, "continued pretraining"),
            Arm("corpus merged", merged, "averaged with the base"),
            Arm("tuned", tuned("tuned", base), "multiple choice alone"),
            Arm("corpus tuned", tuned("corpus-tuned", read), "multiple choice after the corpus"),
            Arm("corpus merged tuned", tuned("merged-tuned", merged), "multiple choice after the mean"),
        ),
        benchmarks=benchmarks(c),
        claims=(
            Claim("The corpus helps, before tuning", "corpus", "base"),
            Claim("The corpus helps, after tuning", "corpus tuned", "tuned"),
            Claim("Merging helps, before tuning", "corpus merged", "corpus"),
            Claim("Merging helps, after tuning", "corpus merged tuned", "corpus tuned"),
        ),
        compared_with="base",
    )
