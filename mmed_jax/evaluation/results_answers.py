"""The answers on an evaluation's page: which could not be read and what to try, then wrong ones and right ones."""

from collections.abc import Mapping, Sequence
from typing import Any

from mmed_jax.data.records.schema import LANGUAGE_NAMES, LANGUAGES
from mmed_jax.evaluation.prompts.items import Item
from mmed_jax.evaluation.ratings.explanations import draw
from mmed_jax.evaluation.results_json import has_parse_rate
from mmed_jax.llm_api.finish_reasons import was_cut

# Of each kind of answer at most so many, in this order; all are in predictions.jsonl.
SHOWN = {"not read": 60, "wrong": 100, "right": 60}
_TITLES = {"not read": "Could not be read", "wrong": "Wrong", "right": "Right"}
_CUT = 700  # characters of a text
_SEED = 0  # of the choice of answers

Pair = tuple[Item, Mapping[str, Any]]
Lines = Mapping[tuple[str, str], Mapping[str, Any]]  # of predictions.jsonl by benchmark and id


def verdict(pair: Pair) -> str:
    """ "right", "wrong" or "not read": a question with options, and no letter in its answer."""
    item, prediction = pair
    if prediction["correct"]:
        return "right"
    return "not read" if item.options and prediction["extracted"] is None else "wrong"


def answer_groups(pairs: Sequence[Pair], baseline: Lines) -> list[dict[str, Any]]:
    """A group for each verdict that there is: {"title", "verdict", "count", "answers"}.

    Args:
      baseline: the lines of an earlier evaluation, {} for none.
    """
    groups = []
    for name, most in SHOWN.items():
        there = [pair for pair in pairs if verdict(pair) == name]
        shown = [_answer(pair, name, baseline) for pair in _examples(there, most)]
        if there:
            groups.append({"title": _TITLES[name], "verdict": name, "count": len(there), "answers": shown})
    return groups


def _examples(pairs: Sequence[Pair], most: int) -> list[Pair]:
    """At most `most`, as many of each language as there is room for, drawn by a fixed seed, by language."""
    drawn = sorted(pairs, key=lambda pair: draw(_SEED, *pair[0].key))
    of = {lang: [p for p in drawn if p[0].language == lang] for lang in LANGUAGES}
    turns = [(k, lang) for lang, there in of.items() for k in range(len(there))]
    chosen = sorted(turns, key=lambda t: (t[0], LANGUAGES.index(t[1])))[:most]
    return [of[lang][k] for k, lang in sorted(chosen, key=lambda t: (LANGUAGES.index(t[1]), t[0]))]


def _answer(pair: Pair, name: str, baseline: Lines) -> dict[str, Any]:
    """One answer, its texts cut to a length that can be read."""
    item, prediction = pair
    question = item.record.get("question") or ""
    scored = bool(prediction.get("loglikelihoods"))
    with_reference = prediction.get("generated_rationale") is not None and prediction.get("rationale")
    rule = "" if scored else f"; rule {prediction['rule']}, ended by {prediction['finish_reason']}"
    earlier = baseline.get(item.key)
    return {
        "verdict": name,
        "language": LANGUAGE_NAMES[item.language],
        "code": item.language,
        "benchmark": item.benchmark,
        "given": _given(item, prediction),
        "right": _short(item.answer, size=60),
        "start": _short(" ".join(question.split()), size=80),
        "passage": _short(item.record.get("context") or ""),
        "question": _short(question or prediction["prompt"], end=not question),
        "options": [_option(letter, item, prediction) for letter in item.options or ()],
        "output": "" if scored else _short(prediction["output"].strip()) or "(nothing)",
        "reference": _short(prediction["rationale"].strip()) if with_reference else "",
        "source": f"{item.benchmark} {item.id}{rule}",
        "baseline": _earlier(item, prediction, earlier) if earlier else None,
    }


def _given(item: Item, prediction: Mapping[str, Any]) -> str:
    return prediction["extracted"] or ("not read" if item.options else "another text")


def _earlier(item: Item, prediction: Mapping[str, Any], earlier: Mapping[str, Any]) -> dict[str, Any]:
    """What an earlier evaluation has of the same question. change: "same" where both are right, or both wrong."""
    change = ("same", "now right", "now wrong")[bool(prediction["correct"]) - bool(earlier["correct"])]
    output = "" if earlier.get("loglikelihoods") else _short(str(earlier["output"]).strip()) or "(nothing)"
    given = "the right text" if not item.options and earlier["correct"] else _given(item, earlier)
    return {"change": change, "given": given, "correct": bool(earlier["correct"]), "output": output}


def _option(letter: str, item: Item, prediction: Mapping[str, Any]) -> dict[str, Any]:
    values = prediction.get("loglikelihoods")
    right, chosen = (letter in (text or "").split(",") for text in (item.answer, prediction["extracted"]))
    options = item.options or {}
    return {
        "letter": letter,
        "text": _short(options[letter]),
        "score": f" ({values[list(options).index(letter)]:.2f} nats)" if values else "",
        "right": right,
        "chosen": chosen,
    }


def _short(text: str, *, end: bool = False, size: int = _CUT) -> str:
    if len(text) <= size:
        return text
    return "… " + text[-size:] if end else text[:size] + " …"


# ---- What could not be read -----------------------------------------------------------------------------------------


def unread_answers(results: Mapping[str, Any], pairs: Sequence[Pair]) -> dict[str, Any] | None:
    """{"count", "of", "share", "reasons": [[what they have in common, how many, what to try]]} of the answers that no
    letter could be read from; None where there is none, or nothing is read from text."""
    unread = [pair for pair in pairs if verdict(pair) == "not read"]
    if not unread or not has_parse_rate(dict(results)):
        return None
    counts: dict[str, int] = {}
    for pair in unread:
        reason = _reason(pair)
        counts[reason] = counts.get(reason, 0) + 1
    tries = _tries(results)
    rows = [[reason, counts[reason], tries[reason]] for reason in tries if reason in counts]
    return {"count": len(unread), "of": len(pairs), "share": f"{len(unread) / len(pairs):.1%}", "reasons": rows}


_LIMIT, _EMPTY, _SEVERAL, _LANGUAGE, _OTHER = (
    "were cut by the token limit",
    "are empty",
    "name several options, or take one back",
    "are written in another language than the question",
    "state no option",
)


def _reason(pair: Pair) -> str:
    item, prediction = pair
    if was_cut(dict(prediction)):
        return _LIMIT
    if not prediction["output"].strip():
        return _EMPTY
    if prediction["rule"] == "ambiguous":
        return _SEVERAL
    spoken = prediction.get("response_language")
    return _LANGUAGE if spoken is not None and spoken != item.language else _OTHER


def _tries(results: Mapping[str, Any]) -> dict[str, str]:
    """What to try, by reason; only what this evaluation has not done already, and what its model can."""
    settings = results["settings"]
    scoring = "" if results["model"].get("kind") == "api" else "--mode=loglikelihood, which compares the options"
    examples = "" if settings.get("few_shot") else "--few_shot=3, which shows the form"
    either = ", or ".join(filter(None, (examples, scoring))) or "a closer look at them, below"
    limit = settings.get("max_new_tokens")
    longer = f"--max_new_tokens={2 * limit}" if limit else "a larger --max_new_tokens"
    direct = ", or --mode=rationale, where it explains first" if settings.get("mode") == "direct" else ""
    family = {"llama3": "mmedbench", "mmedbench": "llama3"}.get(str(settings.get("prompt_family")), "")
    other = f"--prompt_family={family}" if family else "another --prompt_family"
    return {
        _LIMIT: longer + direct,
        _EMPTY: f"{other}: a model that was not trained on a form of prompt may end at once",
        _SEVERAL: scoring or examples or "a closer look at them, below",
        _LANGUAGE: either,
        _OTHER: either,
    }
