"""The model card of an export: what is known of the model, and what evaluate wrote of this model and no other."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmed_jax.common import jsonl
from mmed_jax.common.errors import UserError
from mmed_jax.common.paths import expand_home
from mmed_jax.data.chat_formats import syntax_of
from mmed_jax.evaluation.results_json import rows, sample_note
from mmed_jax.hf.licences import licences_of
from mmed_jax.hf.lora_model import LoraModel
from mmed_jax.hf.model_card import Adapter, Evaluation, languages_of, model_card
from mmed_jax.hf.model_source import ModelSource, identity
from mmed_jax.hf.provenance import provenance_of


class CardWriter:
    """Writes the card of a model; the evaluations are read at once.

    Args:
      source: the model. name: what it is called. base_name: what its base is called, "" = as found.
      evaluations: folders that evaluate wrote. adapter_alone: the card is of a folder that holds the adapter alone.

    Raises:
      UserError: an evaluation that is not of this model (read_evaluation).
    """

    def __init__(
        self, source: ModelSource, name: str, *, base_name: str, evaluations: Sequence[str], adapter_alone: bool
    ):
        if evaluations and source.lora is not None and source.base is None:
            raise UserError("--results: which weights were evaluated can't be told without the base (--base=DIR)")
        known = identity(source) if evaluations else {}
        self._evaluations = [read_evaluation(expand_home(folder), known) for folder in evaluations]
        self.name = name
        self._source, self._base_name, self._adapter_alone = source, base_name, adapter_alone

    @property
    def provenance(self) -> dict[str, Any]:
        """What is known of the model's making; of a run that of its step, once the weights were read."""
        return provenance_of(self._source, self._base_name)

    @property
    def licence(self) -> str:
        """Of the base, "" where it is not known."""
        return self.provenance["base"]["licence"]

    @property
    def licences(self) -> list[str]:
        """Of the base and, of a mean, of its parents' bases."""
        return licences_of(self.provenance)

    @property
    def results(self) -> list[dict[str, Any]]:
        """The evaluations for mmed_jax_export.json: {"setting", "notes", "rows": [{"benchmark", "language", "count",
        "accuracy", "interval95"}]}."""
        keys = ("count", "accuracy", "interval95")
        return [
            {
                "setting": e.setting,
                "notes": list(e.notes),
                "rows": [
                    {"benchmark": benchmark, "language": language, **{k: cell[k] for k in keys}}
                    for benchmark, language, cell in e.rows
                ],
            }
            for e in self._evaluations
        ]

    @property
    def gguf_fields(self) -> dict[str, Any]:
        """Metadata of a GGUF file: licence and languages, as far as they are known."""
        languages = languages_of(self.provenance)
        licence = {"general.license": self.licence} if self.licence else {}
        return licence | ({"general.languages": languages} if languages else {})

    def text(self, called: str = "", gguf: str = "") -> str:
        """README.md. called: of an adapter's folder, what its config calls the base. gguf: name of the one file."""
        source, adapter = self._source, None
        if self._adapter_alone and isinstance(source, LoraModel):
            adapter = Adapter(source.spec, called, source.record)
        syntax = syntax_of(source.tokenizer)
        return model_card(
            self.name,
            self.provenance,
            source.cfg,
            adapter=adapter,
            chat=syntax.name if syntax else "",
            evaluations=self._evaluations,
            gguf=gguf,
        )


def read_evaluation(folder: Path, model: Mapping[str, Any]) -> Evaluation:
    """The evaluation in `folder`.

    Args:
      folder: that evaluate wrote. model: of hf.model_source.identity, the model whose card it goes into.

    Raises:
      UserError: no results.json, one without accuracies, or of another model.
    """
    file = folder / "results.json"
    try:
        results = jsonl.loads(file.read_bytes(), dict)
    except FileNotFoundError as e:
        raise UserError(f"--results: {folder} has no results.json; give folders that mmed_jax.evaluate wrote") from e
    except (OSError, ValueError) as e:
        raise UserError(f"--results: {file} cannot be read ({e})") from e
    if not isinstance(results.get("benchmarks"), dict) or not isinstance(results.get("model"), dict):
        raise UserError(f"--results: {file} holds no accuracies of a model")
    found = results["model"]
    if found.get("fingerprint") != model["fingerprint"]:
        step = f", step {found['step']}" if found.get("step") is not None else ""
        raise UserError(f"--results: {folder} is of other weights ({found.get('path')}{step}) than those of --model")
    shots = f"{results.get('few_shot') or 0} examples"
    setting = f"{results['metric']}. Mode `{results['mode']}`, prompts `{results['prompt_family']}`, {shots}."
    note = sample_note(results)
    return Evaluation(setting, rows(results), [f"**This is {note}.**"] if note else [])
