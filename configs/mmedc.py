"""MMedC: a multilingual medical corpus for continued pretraining, after arXiv 2402.13963 (25.5 billion tokens).

    python -m data_gen corpus build --recipe=mmedc --data_dir=raw --output=corpora/mmedc --benchmarks=test_sets
    python -m mmed_jax.train --config=pretrain:8b --config.data.train=tables/mmedc

The paper's four kinds of sources, each as far as its files lie below --data_dir (the report says what is not there):

  filtered_web   web text of which the keyword filter keeps what is medical. The paper's CulturaX is gated; FineWeb
                 (English) and FineWeb-2 (the other six languages) are open and read the same way
  textbooks      PDF or text, by language: textbooks/fr/...; pages that are pictures are read by tesseract. The paper's
                 8,000 titles are not published, and most are not free: say --recipe.source.textbooks.license=... of
                 those that you may use
  websites       WARC files or folders of HTML of medical sites; no crawler comes with this. Licences: a table
                 of addresses beside the pages (docs/corpus.md), or --recipe.source.websites.license=...
  small_corpora  JSONL, Parquet or text of existing medical corpora

Languages: the paper's six (en, zh, ja, fr, ru, es) and Korean, for which it has neither keywords nor a threshold: both
are ours. The rule of the keyword filter and its thresholds are the paper's. No deduplication, quality filter,
decontamination or removal of personal data is to be seen in the paper's code: those steps and their settings are ours.

variant  what it is for
""       all of the above
demo     texts written for this project, in seven languages: shows in seconds what every step does
"""

from ml_collections import ConfigDict

from data_gen.corpus.corpus_recipe import base, source

VARIANTS = ("", "demo")

# Folders of FineWeb-2, as it is published.
FINEWEB2 = {"zh": "cmn_Hani", "ja": "jpn_Jpan", "ko": "kor_Hang", "fr": "fra_Latn", "es": "spa_Latn", "ru": "rus_Cyrl"}


def get_config(variant: str = "") -> ConfigDict:
    """The recipe of one variant; see the table above."""
    c = base()
    c.name = "mmedc"
    c.title = "MMedC (rebuilt): multilingual medical corpus"
    c.description = (
        "Running text on medicine for continued pretraining, filtered after the method of arXiv 2402.13963 from inputs "
        "that the user has; not the authors' own data. For research, not for clinical use."
    )
    if variant == "demo":
        return _demo(c)
    c.missing = "skip"
    c.source.fineweb = source("fineweb/data", language="en", license="ODC-By 1.0", fields={"language": ""})
    for code, folder in FINEWEB2.items():
        c.source[f"fineweb2_{code}"] = source(
            f"fineweb-2/data/{folder}/train", language=code, license="ODC-By 1.0", fields={"language": ""}
        )
    for code in c.languages:
        # Its card names the licences of mC4 (ODC-By) and OSCAR (CC0).
        c.source[f"culturax_{code}"] = source(
            f"CulturaX/{code}", language=code, license="ODC-By 1.0", fields={"date": "timestamp", "id": ""}
        )
    c.source.textbooks = source(
        "textbooks", kind="textbooks", keywords=False, quality=False, language="folder", pdf={"ocr": "tesseract"}
    )
    c.source.websites = source("websites", kind="websites", keywords=False)
    c.source.small_corpora = source("small_corpora", kind="small_corpora", keywords=False)
    c.sources = tuple(c.source)
    return c


def _demo(c: ConfigDict) -> ConfigDict:
    c.name = "mmedc_demo"
    c.title = "The demo of the corpus builder"
    c.description = (
        "Texts written for this project; textbook knowledge for research and software testing, not for clinical use."
    )
    c.benchmarks = "@handcrafted"
    c.source.web = source("@corpus/demo/web.ndjson")
    c.source.leaflets = source("@corpus/demo/leaflets", kind="textbooks", keywords=False, license="Apache-2.0")
    c.source.pages = source("@corpus/demo/pages", kind="websites", keywords=False)
    c.source.book = source("@corpus/demo/book", kind="textbooks", keywords=False, language="en", license="Apache-2.0")
    c.sources = tuple(c.source)
    return c
