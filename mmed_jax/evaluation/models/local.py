"""A run directory or Hugging Face folder under evaluation: prompts as token ids, answers from our engine."""

import argparse
from collections.abc import Callable, Sequence
from typing import Any

from mmed_jax.data.chat_formats import syntax_of
from mmed_jax.evaluation import scoring
from mmed_jax.evaluation.models.usage import Usage
from mmed_jax.evaluation.prompts.items import Item, PromptSettings, encode_items
from mmed_jax.hf.open_model import identity, open_model, trained_prompts
from mmed_jax.hf.tuning import tuning_of
from mmed_jax.inference.load import flags_to_lower, load_engine


class LocalModel:
    """The model of --model. No device is touched before `start`; models.api.ApiModel has the same methods.

    Attributes:
      prompt_defaults: {"prompt_family", "system_prompt"} that it was trained with; log-likelihoods of a model without
        chat format are asked in the family that needs none. decoding: how it decodes, in words.
    """

    decoding = "greedy"
    dry_run = shows_progress = False

    def __init__(self, args: argparse.Namespace):
        """Raises UserError for a folder that is no model."""
        self._args, self._engine = args, None
        self._source = open_model(args.model, args.step, args.ignore_keys, adapter=args.adapter, base_dir=args.base)
        self._tok = self._source.tokenizer
        self.prompt_defaults = trained_prompts(self._source)
        if args.mode == "loglikelihood" and syntax_of(self._tok) is None:
            self.prompt_defaults["prompt_family"] = "mmedbench"

    def answer_limit(self, default: int) -> int:
        """The most tokens of an answer; `default`: of the mode."""
        return default if self._args.max_new_tokens is None else self._args.max_new_tokens

    def prepare(self, items: Sequence[Item], prompt_settings: PromptSettings, max_new_tokens: int) -> list[Item]:
        """The items with their token ids. Raises UserError for one that the model has no room for."""
        from mmed_jax.inference.engine import check_ids, check_prompts

        items = encode_items(self._tok, items, prompt_settings)
        longest = [i.prompt + list(max(i.choices, key=len, default=())) for i in items]
        check_ids(self._source.cfg, [c for i in items for c in i.choices], "an option's text")
        names = [f"{i.benchmark} {i.id}" for i in items]
        check_prompts(self._source.cfg, longest, 1 if prompt_settings.score else max_new_tokens, names)
        return items

    @property
    def identity(self) -> dict[str, Any]:
        """Which weights these are; final after `start`, when the newest checkpoint turned out to be damaged."""
        return identity(self._source)

    @property
    def tuning(self) -> dict[str, Any]:
        """How the weights were tuned (hf.tuning.tuning_of)."""
        return tuning_of(self._source)

    @property
    def settings(self) -> dict[str, Any]:
        """What of the model's side decides the answers; dtype None where the device decides, known after `start`."""
        dtype = self._engine.dtype.name if self._engine else self._args.dtype
        return {"dtype": dtype, "stop_ids": self._source.stop_ids}

    def start(
        self, items: Sequence[Item], prompt_settings: PromptSettings, settings: dict[str, Any], before: int
    ) -> None:
        """Loads the weights. Raises UserError or WorkError (inference.load.load_engine)."""
        self._engine = load_engine(self._args, self._source, self.settings["stop_ids"])

    def is_final(self, line: dict) -> bool:
        """Whether a line of an earlier call stands: all do."""
        return True

    def ask(
        self,
        items: Sequence[Item],
        numbers: Sequence[int],
        prompt_settings: PromptSettings,
        settings: dict[str, Any],
        on_line: Callable[[dict], None],
    ) -> None:
        """Answers every item; `on_line` gets the line of predictions.jsonl of each, in any order.

        `numbers` are the items' places in the whole evaluation. Raises WorkError.
        """

        def done(k: int, result: Any) -> None:
            item = items[k]
            text = "" if item.choices else self._tok.decode(result.ids, skip_special_tokens=True)
            on_line(
                scoring.prediction(
                    item,
                    result,
                    mode=prompt_settings.mode,
                    prompt=self._tok.decode(item.prompt),
                    output=text,
                    normalise=settings["normalise"],
                )
            )

        prompts = [i.prompt for i in items]
        shorter = "another --output with fewer examples (--few_shot) or shorter answers (--max_new_tokens)"
        with flags_to_lower(shorter, kept=True):
            if prompt_settings.score:
                self._engine.loglikelihood(prompts, [i.choices for i in items], on_done=done)
            else:
                self._engine.generate(prompts, max_new_tokens=settings["max_new_tokens"], items=numbers, on_done=done)

    def usage(self, predictions: Sequence[dict]) -> Usage:
        """What the answers cost: nothing."""
        return Usage()
