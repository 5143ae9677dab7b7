"""Answers of an ordinary transformers model, many at a time: what our engine and exports are measured against."""

from collections.abc import Sequence
from typing import Any

ROWS = 70  # that are written at a time; the processor time of a token hardly depends on it


def greedy_answers(model: Any, tok: Any, chats: Sequence[list[dict]], max_new_tokens: int) -> list[tuple[int, str]]:
    """(tokens of the prompt, text) of each chat, written greedily by `model.generate` behind left padding.

    Args:
      model, tok: from AutoModelForCausalLM and AutoTokenizer; the tokenizer has a pad token and a chat template.
    """
    import torch

    tok.padding_side = "left"
    answers = []
    for start in range(0, len(chats), ROWS):
        options = {"add_generation_prompt": True, "padding": True, "return_tensors": "pt", "return_dict": True}
        ids = tok.apply_chat_template(list(chats[start : start + ROWS]), **options)
        with torch.no_grad():
            made = model.generate(**ids, max_new_tokens=max_new_tokens, do_sample=False)
        texts = tok.batch_decode(made[:, ids["input_ids"].shape[1] :], skip_special_tokens=True)
        answers += zip(ids["attention_mask"].sum(1).tolist(), texts, strict=True)
    return answers
