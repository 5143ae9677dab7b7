"""What the folder of an averaged model says of its parents: in mmed_jax_export.json and in its card."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

from mmed_jax.common.buckets.download import address_of
from mmed_jax.data.chat_formats import syntax_of
from mmed_jax.hf.base_model import hub_name
from mmed_jax.hf.export_folder import MARKER
from mmed_jax.hf.folder_hash import Tick, hash_files, weight_files, weights_hash
from mmed_jax.hf.licences import base_facts, licences_of
from mmed_jax.hf.model_card import model_card
from mmed_jax.hf.model_source import ModelSource
from mmed_jax.hf.provenance import KEY, provenance_of
from mmed_jax.hf.tuning import tuning_of
from mmed_jax.model.config import num_params


class MergeRecord:
    """Card and record of a mean.

    Args:
      name: of the folder. paths: of the models as they were given. sources, shares: the models and their weights.
      progress: called with (bytes hashed, bytes in all) for each model.
    """

    def __init__(
        self,
        name: str,
        paths: Sequence[str],
        sources: Sequence[ModelSource],
        shares: Sequence[float],
        progress: Tick | None = None,
    ):
        self._name, self._paths, self._sources, self._shares = name, paths, sources, shares
        self._progress = progress

    @functools.cached_property
    def provenance(self) -> dict[str, Any]:
        """That of hf.provenance with "merged"; all weights are read for their hashes when it is asked for first."""
        parents = []
        for path, source, share in zip(self._paths, self._sources, self._shares, strict=True):
            hub = hub_name(source)
            hashes = hash_files(weight_files(source.path), self._progress)
            parents.append(
                {
                    "name": hub or str(path).rstrip("/").rpartition("/")[2],
                    "hub": bool(hub),
                    "path": address_of(source.path) or str(source.path.resolve()),
                    "weight": share,
                    "sha256": weights_hash(hashes),
                    "files": hashes,
                    "marker": hash_files([marker])[MARKER] if (marker := source.path / MARKER).is_file() else "",
                    "provenance": provenance_of(source),
                }
            )
        return merged_provenance(parents)

    @property
    def licence(self) -> str:
        """Of the base that all parents have, "" where they differ or it is not known."""
        return self.provenance["base"]["licence"]

    @property
    def licences(self) -> list[str]:
        """Of all parents' bases, as far as they are known."""
        return licences_of(self.provenance)

    @property
    def chat(self) -> str:
        """Name of the chat format, "" for none."""
        syntax = syntax_of(self._sources[0].tokenizer)
        return syntax.name if syntax else ""

    def info(self) -> dict[str, Any]:
        """For mmed_jax_export.json."""
        tunings = [tuning_of(source) for source in self._sources]
        trained = any(t["method"] != "none" for t in tunings)
        bases = {t["base"] for t in tunings}
        mean = ", ".join(f"{share:.6g} x {p['name']}" for p, share in zip(self.provenance["merged"], self._shares))
        return {
            "made_by": "mmed_jax.merge",
            "source_kind": "hf",
            "source": [p["name"] for p in self.provenance["merged"]],
            "chat_format": self.chat or None,
            "tuning": {
                "method": "full" if trained else "none",
                "text": f"mean of {mean}",
                "trained_parameters": max(t["trained_parameters"] for t in tunings),
                "parameters": num_params(self._sources[0].cfg),
                "base": bases.pop() if len(bases) == 1 else "",
                "quantization": "compute",
                "adapter": None,
            },
            KEY: self.provenance,
        }

    def card(self) -> str:
        """README.md."""
        return model_card(self._name, self.provenance, self._sources[0].cfg, chat=self.chat)


def merged_provenance(parents: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """One provenance (hf.provenance.provenance_of) for the mean of models.

    Args:
      parents: {"name", "hub", "path", "weight", "sha256", "files", "marker" (SHA-256 of its mmed_jax_export.json, "" =
        it has none), "provenance"} of each.

    Returns:
      The common base, or one without a name whose licence is the common one; the stages of all, those that parents
      share once, others with their parent's name; "merged": the parents, their own provenance left out but its base;
      "merged_stages": how many of the stages came before the mean.
    """
    known = [parent["provenance"] for parent in parents]
    bases = [p["base"] for p in known]
    base = dict(bases[0])
    if any(b != bases[0] for b in bases):
        licences = {b["licence"] for b in bases}
        base = base_facts("", *(("", "") if len(licences) > 1 else (bases[0]["licence"], bases[0]["licence_from"])))
    stages: list[dict[str, Any]] = []
    for parent in parents:
        for stage in parent["provenance"]["stages"]:
            shared = all(stage in p["stages"] for p in known)
            named = stage if shared else {**stage, "name": f"{parent['name']}: {stage['name']}"}
            stages += [] if named in stages else [named]
    kept = ("name", "hub", "path", "weight", "sha256", "files", "marker")
    return {
        "base": base,
        "stages": stages,
        "complete": all(p["complete"] for p in known),
        "merged_stages": len(stages),
        "merged": [{**{k: p[k] for k in kept}, "base": p["provenance"]["base"]} for p in parents],
    }
