"""README.md of a folder of weights: the model card as the Hugging Face hub reads it, YAML head and text.

One card for whole models and for adapters. All that it says comes from the model's provenance (hf.provenance) and from
evaluations that were given; what is not known is said to be not known.
"""

import dataclasses
import json
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from mmed_jax.data.records.schema import LANGUAGE_NAMES, LANGUAGES
from mmed_jax.data.sources import SOURCES
from mmed_jax.hf.licences import LLAMA_TERMS, NOTICE, Terms, base_facts, licence_of, licences_of, names_problem
from mmed_jax.model.config import LlamaConfig, num_params
from mmed_jax.model.lora import LoraSpec, num_adapter_params

_KINDS = {"nf4": "4-bit NF4 codes (blocks of 64)", "int8": "8-bit codes by output row"}
# Identifiers that the hub takes for `license`, as far as bases have them; it refuses a card with another word.
_HUB_LICENCES = {"apache-2.0", "mit", "bsd-3-clause", "cc0-1.0", "cc-by-4.0", "cc-by-sa-4.0", "cc-by-nc-4.0"}
_HUB_LICENCES |= {"cc-by-nc-sa-4.0", "openrail", "gemma", "llama2", "llama4", *LLAMA_TERMS}
_NOT_COMMERCIAL = re.compile(r"\bNC\b|non-?commercial|research", re.IGNORECASE)
_CITATIONS = (
    (
        "mmed_ift",
        "Towards Democratizing Multilingual Large Language Models For Medicine Through A Two-Stage Instruction "
        "Fine-tuning Approach",
        "2409.05732",
    ),
    ("mmedbench", "Towards Building Multilingual Language Model for Medicine", "2402.13963"),
)


@dataclasses.dataclass(frozen=True)
class Adapter:
    """What a card says of an adapter's folder. record: of its base (hf.base_model), None = not known."""

    spec: LoraSpec
    base_name: str
    record: Mapping[str, Any] | None = None


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """An evaluation of the model: how it was asked, and (benchmark, language, cell) as results.json has them.

    cell: {"count", "accuracy", "interval95": [low, high], ..}. notes: what has to be said of it.
    """

    setting: str
    rows: Sequence[tuple[str, str, Mapping[str, Any]]]
    notes: Sequence[str] = ()


def adapter_card(spec: LoraSpec, cfg: LlamaConfig, base_name: str, record: Mapping[str, Any] | None = None) -> str:
    """The card of an adapter of which no more is known than its base."""
    base = base_facts(base_name, *licence_of(base_name))
    provenance = {"base": base, "stages": [], "complete": False}
    return model_card("Adapter", provenance, cfg, adapter=Adapter(spec, base_name, record))


def model_card(
    name: str,
    provenance: Mapping[str, Any],
    cfg: LlamaConfig,
    *,
    adapter: Adapter | None = None,
    chat: str = "",
    evaluations: Sequence[Evaluation] = (),
    gguf: str = "",
) -> str:
    """The text of README.md.

    Args:
      name: what the model is called. provenance: of hf.provenance.provenance_of. cfg: its constants.
      adapter: where the folder holds an adapter alone. chat: its chat format, "" for none.
      evaluations: of this model and no other. gguf: name of the file where the folder holds one of GGUF.
    """
    parts = [
        _head(provenance, adapter, gguf),
        f"# {_cell(name)}",
        _summary(provenance, cfg, adapter),
        _parents(provenance),
        _use(adapter, chat, gguf),
        _data(provenance),
        _training(provenance),
        _results(evaluations),
        _limits(provenance),
        _licence(name, provenance),
        _citation(),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _head(provenance: Mapping[str, Any], adapter: Adapter | None, gguf: str) -> str:
    base, stages = provenance["base"], provenance["stages"]
    merged = [] if adapter or _trained_from_mean(provenance) else provenance.get("merged", [])
    lines: list[str] = []
    if languages := languages_of(provenance):
        lines += ["language:", *(f"- {json.dumps(code)}" for code in languages)]  # "no" unquoted is False
    if base["licence"] in _HUB_LICENCES:
        lines.append(f"license: {base['licence']}")
    elif base["licence"]:
        lines += ["license: other", f"license_name: {json.dumps(base['licence'])}"]
    if merged and all(parent["hub"] for parent in merged):
        lines += ["base_model:", *(f"- {parent['name']}" for parent in merged), "base_model_relation: merge"]
    elif base["hub"]:
        lines += [f"base_model: {base['name']}"]
        relation = "adapter" if adapter else "finetune" if stages else "quantized" if gguf else ""
        lines += [f"base_model_relation: {relation}"] if relation else []
    library = "gguf" if gguf else "peft" if adapter else "transformers"
    lines += [f"library_name: {library}", "pipeline_tag: text-generation"]
    if datasets := sorted({SOURCES[s].hub.repo for s in _sources(provenance) if s in SOURCES and SOURCES[s].hub.repo}):
        lines += ["datasets:", *(f"- {repo}" for repo in datasets)]
    tags = ["medical", "mmed_jax", *(["llama"] if _llama_terms(provenance) else [])]
    tags += ["merge"] if merged else []
    tags += ["multilingual"] if len(languages_of(provenance)) > 1 else []
    if adapter:
        tags += ["lora", *([f"base_model:adapter:{base['name']}"] if base["hub"] else [])]
    return "\n".join(["---", *lines, "tags:", *(f"- {tag}" for tag in tags), "---"])


def _summary(provenance: Mapping[str, Any], cfg: LlamaConfig, adapter: Adapter | None) -> str:
    base = provenance["base"]
    beginning = "random weights" if base["random"] else _code(base["name"]) if base["name"] else "a base not known here"
    if adapter:
        spec = adapter.spec
        method = ("rank-stabilised " if spec.rslora else "") + ("DoRA" if spec.dora else "LoRA")
        ranks = sorted({r for _, by_layer, _ in spec.modules for r in by_layer if r})
        shown = str(ranks[0]) if len(ranks) == 1 else f"{ranks[0]} to {ranks[-1]}"
        what = (
            f"A {method} adapter of {_code(base['name'] or adapter.base_name)}: rank {shown}, alpha {spec.alpha:g}, "
            f"modules {', '.join(t for t, _, _ in spec.modules)}; {num_adapter_params(spec, cfg):,} trained parameters "
            "in float32. It changes that base and no other: on different weights its output means nothing."
        )
        what += _quantised(adapter.record)
    elif provenance.get("merged") and not _trained_from_mean(provenance):
        names = ", ".join(_code(parent["name"]) for parent in provenance["merged"])
        what = f"The weighted mean of the weights of {names}; {num_params(cfg):,} parameters."
    elif provenance["stages"]:
        own = provenance["stages"][provenance.get("merged_stages", 0) :]
        order = ", then ".join(f"{_cell(s['name'])} ({s['method']})" for s in own)
        beginning = "a mean of models (below)" if provenance.get("merged") else beginning
        what = f"A language model of {num_params(cfg):,} parameters, trained from {beginning}: {order}."
    else:
        what = f"The weights of {beginning}, {num_params(cfg):,} parameters; no training of them is recorded."
    notices = dict.fromkeys(terms.notice for terms in _llama_terms(provenance))
    return "\n\n".join(
        [
            *(f"**{notice}**" for notice in notices),
            f"{what} Written by mmed_jax.",
            "**For research. Not for clinical use.** Nothing here has been validated for the care of patients.",
        ]
    )


def _trained_from_mean(provenance: Mapping[str, Any]) -> bool:
    """Whether a mean of models was trained further."""
    return bool(provenance.get("merged")) and len(provenance["stages"]) > provenance["merged_stages"]


def _parents(provenance: Mapping[str, Any]) -> str:
    """Of a mean of models: which, with the hash of their weights."""
    if not provenance.get("merged"):
        return ""
    rows = [
        (p["name"], p["weight"], p["base"]["name"], p["base"]["licence"] or "not known", p["sha256"])
        for p in provenance["merged"]
    ]
    began = "It began with a mean of models. " if _trained_from_mean(provenance) else ""
    form = "Each value of the mean is the float32 sum of weight x parent, rounded once."
    return f"## Parents\n\n{began}{form}\n\n" + _table(
        ("parent", "weight", "its base", "licence of the base", "SHA-256 of its config and weights"), rows
    )


def _quantised(record: Mapping[str, Any] | None) -> str:
    kind = (record or {}).get("quantization")
    if kind not in _KINDS:
        return ""
    return (
        f" While it was trained the base's linear layers were held as {_KINDS[kind]}; on the unquantised base it "
        "computes slightly other numbers."
    )


def _use(adapter: Adapter | None, chat: str, gguf: str) -> str:
    if gguf:
        form = f" Its chat format is `{chat}`, whose template is in the file." if chat else ""
        command = f"llama-cli -m {shlex.quote(gguf)}{' -cnv' if chat else ''}"
        return f"## Use\n\n    {command}\n\nOne GGUF file, tokenizer included.{form}"
    auto = "from transformers import AutoModelForCausalLM, AutoTokenizer"
    if adapter:
        code = [
            *("from peft import PeftModel", auto, ""),
            f"model = AutoModelForCausalLM.from_pretrained({json.dumps(adapter.base_name)})",
            'model = PeftModel.from_pretrained(model, "THIS_FOLDER")',
        ]
        command = "    python -m mmed_jax.generate --model=BASE --adapter=THIS_FOLDER --prompt=TEXT"
    else:
        code = [auto, "", 'model = AutoModelForCausalLM.from_pretrained("THIS_FOLDER")']
        command = f"    python -m mmed_jax.generate --model=THIS_FOLDER{'' if chat else ' --raw'} --prompt=TEXT"
    code.append('tokenizer = AutoTokenizer.from_pretrained("THIS_FOLDER")')
    form = f"\n\nIts chat format is `{chat}`, which the tokenizer's template writes." if chat else ""
    return "## Use\n\n```python\n" + "\n".join(code) + f"\n```\n\n{command}{form}"


def _data(provenance: Mapping[str, Any]) -> str:
    parts = ["## Training data"]
    for stage in provenance["stages"]:
        title = f"### {_cell(stage['name'])}"
        if not stage["data"]:
            parts.append(f"{title}\n\nWhat it was trained on is not recorded in its checkpoint.")
            continue
        codes = [c for c in LANGUAGES if any(r["language"] == c for r in stage["data"])]
        codes += sorted({r["language"] for r in stage["data"]} - set(codes))
        counts: dict[tuple[str, str], dict[str, int]] = {}
        for row in stage["data"]:
            by_language = counts.setdefault((row["source"], row["license"]), {})
            by_language[row["language"]] = by_language.get(row["language"], 0) + row["records"]
        rows = [
            (source, licence or "see the corpus's own report", *(n.get(c, 0) for c in codes), sum(n.values()))
            for (source, licence), n in sorted(counts.items())
        ]
        totals = [sum(n.get(c, 0) for n in counts.values()) for c in codes]
        rows.append(("**all**", "", *totals, sum(totals)))
        parts.append(f"{title}\n\n{_table(('source', 'licence', *codes, 'all'), rows)}")
    if not provenance["stages"]:
        parts.append("Not known here.")
    elif any(stage["data"] for stage in provenance["stages"]):
        parts.append(
            "Records by source, licence and language, each counted once, those held out for validation left out. The "
            "licence of its source holds for each record."
        )
    return "\n\n".join(parts)


def _training(provenance: Mapping[str, Any]) -> str:
    stages = provenance["stages"]
    if not stages:
        return ""
    keys = list(dict.fromkeys(key for stage in stages for key in stage["settings"]))
    rows = [("trained", *(s["method"] for s in stages)), ("steps", *(_number(s["step"]) for s in stages))]
    rows.append(("tokens seen", *(_number(s["tokens_seen"]) for s in stages)))
    rows += [(f"`{key}`", *(_value(stage["settings"].get(key)) for stage in stages)) for key in keys]
    for key in ("validation/loss", "validation/bits_per_byte", "validation/accuracy"):
        if any(key in stage["validation"] for stage in stages):
            rows.append((key, *(_value(stage["validation"].get(key)) for stage in stages)))
    text = "## Training\n\n" + _table(("", *(s["name"] for s in stages)), rows)
    if not provenance["complete"]:
        text += "\n\nWhat came before is not recorded, or was not at hand when this was written."
    return text


def _results(evaluations: Sequence[Evaluation]) -> str:
    if not evaluations:
        return "## Results\n\nNo evaluation of this model was given when this card was written."
    parts = ["## Results"]
    for evaluation in evaluations:
        rows = [
            (
                benchmark,
                LANGUAGE_NAMES.get(language, language),
                f"{cell['count']:,}",
                f"{100 * cell['accuracy']:.1f}",
                " to ".join(f"{100 * x:.1f}" for x in cell["interval95"]),
            )
            for benchmark, language, cell in evaluation.rows
        ]
        table = _table(("benchmark", "language", "questions", "accuracy, %", "95 % interval"), rows)
        parts.append("\n\n".join([evaluation.setting, table, *evaluation.notes]))
    parts.append("Answers that could not be read count as wrong. Intervals are Wilson's.")
    return "\n\n".join(parts)


def _limits(provenance: Mapping[str, Any]) -> str:
    codes = languages_of(provenance)
    names = ", ".join(LANGUAGE_NAMES.get(c, c) for c in codes)
    languages = f"It was trained on records in {names}; in other languages expect less. " if names else ""
    return (
        "## Intended use and limits\n\n"
        "For research on multilingual medical language models: measuring them, comparing ways to train them, studying "
        "their errors. Not for diagnosis, treatment, triage or advice to patients, and no medical device.\n\n"
        f"{languages}It can state wrong doses, interactions and guidelines fluently, and repeat what is dated or "
        "biased in its base and its data. Accuracy on examination questions says little about care. Benchmarks may "
        "have stood in the texts that the base was trained on."
    )


def _licence(name: str, provenance: Mapping[str, Any]) -> str:
    base = provenance["base"]
    parts = ["## Licence"]
    if terms := LLAMA_TERMS.get(base["licence"]):
        parts.append(
            f"{terms.notice}. The base is under the [{terms.title}]({terms.link}), by {base['licence_from']}; this "
            "model is derived from it, and those terms hold for it as well. Who hands it on passes on a copy of that "
            f"agreement and the file {NOTICE}, shows the words above, keeps to its acceptable use policy, and gives it "
            f'a name that begins with "{terms.start}".'
        )
        if problem := names_problem(licences_of(provenance), name):
            parts.append(f"**The name of this folder does not: {problem}.**")
    elif held := _llama_terms(provenance):
        titles = ", ".join(f"[{terms.title}]({terms.link})" for terms in held)
        parts.append(
            f"Bases of its parents are under: {titles}. Those terms hold for this model as well: a copy of the "
            f"agreements and the file {NOTICE} go with it, the words above are shown, and its name begins as they say; "
            "the licences of other parents' bases have to be looked up."
        )
        if problem := names_problem(licences_of(provenance), name):
            parts.append(f"**The name of this folder does not: {problem}.**")
    elif base["random"]:
        parts.append("It was trained from random weights, so that no base's licence holds for it.")
    elif base["licence"]:
        parts.append(
            f"The base is under {_code(base['licence'])}, by {base['licence_from']}; this model is derived from it, "
            "and those terms hold for it as well."
        )
    else:
        parts.append(
            "The licence of the base is not known here. It holds for this model, which is derived from it: look it up "
            "before handing this on. For Llama models it is the Llama community licence of their release."
        )
    closed = sorted({r["license"] for r in _records(provenance) if _NOT_COMMERCIAL.search(r["license"])})
    if closed:
        parts.append(
            "**Not for commercial use, by the licence of some of the data:** "
            + ", ".join(_cell(x) for x in closed)
            + "."
        )
    parts.append("The records that it was trained on have licences of their own.")
    return "\n\n".join(parts)


def _citation() -> str:
    entries = [
        f"@misc{{{key},\n  title = {{{title}}},\n  eprint = {{{number}}},\n  archivePrefix = {{arXiv}},\n"
        f"  url = {{https://arxiv.org/abs/{number}}}\n}}"
        for key, title, number in _CITATIONS
    ]
    return "## Citation\n\nThe methods:\n\n```bibtex\n" + "\n\n".join(entries) + "\n```"


def _records(provenance: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [row for stage in provenance["stages"] for row in stage["data"] or ()]


def languages_of(provenance: Mapping[str, Any]) -> list[str]:
    """Codes of the languages that it was trained on."""
    present = {row["language"] for row in _records(provenance)}
    return [code for code in LANGUAGES if code in present]


def _sources(provenance: Mapping[str, Any]) -> set[str]:
    return {row["source"] for row in _records(provenance)}


def _table(head: Iterable[str], rows: Iterable[Iterable[Any]]) -> str:
    head = list(head)
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(_cell(_value(x)) for x in line) + " |" for line in lines)


def _cell(text: str) -> str:
    """Foreign text as a piece of one line of Markdown."""
    return re.sub(r"(?<!\\)\|", r"\\|", " ".join(str(text).replace("<", "&lt;").split()))


def _code(text: str) -> str:
    """Foreign text as code within a line of Markdown, whatever stands in it."""
    shown = " ".join(str(text).replace("`", "'").split())
    return f"`{shown}`"


def _llama_terms(provenance: Mapping[str, Any]) -> list[Terms]:
    """What Llama licences hold for the model."""
    return [LLAMA_TERMS[licence] for licence in licences_of(provenance) if licence in LLAMA_TERMS]


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{k} {_value(v)}" for k, v in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(_value, value))
    return "" if value is None else str(value)


def _number(value: Any) -> str:
    return "not recorded" if value is None else f"{value:,}"
