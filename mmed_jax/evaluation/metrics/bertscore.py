"""BERTScore F1 (Zhang et al. 2020, arXiv 1904.09675) with a model in a folder, by transformers and torch.

The papers used bert-base-multilingual-cased at its 9th layer, without idf weights and without rescaling, as the
bert_score package does by default: every token takes its most similar token of the other text (cosine); special tokens
may be taken, but are not averaged. Only a folder with safetensors is read; nothing is downloaded.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmed_jax.common.errors import UserError
from mmed_jax.common.paths import expand_home

LAYER = 9  # of bert-base-multilingual-cased, bert_score's choice
_BATCH = 32


class BertScore:
    """Scores pairs of texts. Raises UserError when torch is not installed or the folder holds no such model."""

    def __init__(self, path: str | Path, layer: int = LAYER):
        path = expand_home(path)
        if not (path / "config.json").is_file():
            raise UserError(f"BERTScore: {path}: no model there (a folder with config.json and model.safetensors)")
        try:
            import torch
            from transformers import AutoModel, AutoTokenizer
        except ImportError as e:
            raise UserError(
                f"BERTScore needs torch, which is not installed ({e.name}): pip install torch, or leave the metric out"
            ) from None
        try:
            self.tok = AutoTokenizer.from_pretrained(path, local_files_only=True)
            self.model = AutoModel.from_pretrained(path, local_files_only=True, use_safetensors=True).eval()
        except (OSError, ValueError, KeyError) as e:
            raise UserError(f"BERTScore: {path}: {str(e).splitlines()[0]}") from None
        layers = self.model.config.num_hidden_layers
        if not 1 <= layer <= layers:
            raise UserError(f"BERTScore: layer {layer}: {path} has layers 1 to {layers}")
        self.torch, self.layer = torch, layer
        limit = getattr(self.model.config, "max_position_embeddings", 512)
        self.limit = min(limit, self.tok.model_max_length)

    def scores(self, hypotheses: Sequence[str], references: Sequence[str]) -> list[float]:
        """F1 of each pair, from -1 to 1 and in practice 0.5 to 1; texts beyond the model's length are cut."""
        torch, out = self.torch, []
        with torch.no_grad():
            for i in range(0, len(hypotheses), _BATCH):
                hyp = self._embed(hypotheses[i : i + _BATCH])
                ref = self._embed(references[i : i + _BATCH])
                out += [self._f1(h, r) for h, r in zip(hyp, ref)]
        return out

    def _embed(self, texts: Sequence[str]) -> list[tuple[Any, Any]]:
        """Per text: unit vectors float32 [tokens, hidden], and which tokens are no special ones, bool [tokens]."""
        batch = self.tok(
            list(texts),
            padding=True,
            truncation=True,
            max_length=self.limit,
            return_tensors="pt",
            return_special_tokens_mask=True,
        )
        special, mask = batch.pop("special_tokens_mask").bool(), batch["attention_mask"].bool()
        hidden = self.model(**batch, output_hidden_states=True).hidden_states[self.layer].float()
        hidden = hidden / hidden.norm(dim=-1, keepdim=True)
        return [(h[m], ~s[m]) for h, m, s in zip(hidden, mask, special)]

    def _f1(self, hyp: tuple[Any, Any], ref: tuple[Any, Any]) -> float:
        (h, h_kept), (r, r_kept) = hyp, ref
        if not h_kept.any() or not r_kept.any():
            return 0.0
        similar = h @ r.T
        precision = similar.max(dim=1).values[h_kept].mean()
        recall = similar.max(dim=0).values[r_kept].mean()
        return float(2 * precision * recall / (precision + recall))
