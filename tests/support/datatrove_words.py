"""This project's words of a text as a tokenizer of datatrove."""

import re

from datatrove.utils.word_tokenizers import WordTokenizer

_DENSE = (
    "\u1100-\u11ff\u3005\u3041-\u3096\u30a1-\u30ff\u3131-\u318e\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af\uf900-\ufaff"
)
_WORD = re.compile(rf"[{_DENSE}]|[^\W_{_DENSE}]+")


class Words(WordTokenizer):
    """A character of Han, kana and hangul each, else runs of letters and digits (data_gen.corpus.near_duplicates)."""

    def word_tokenize(self, text: str) -> list[str]:
        return _WORD.findall(text)

    def sent_tokenize(self, text: str) -> list[str]:
        raise NotImplementedError

    def span_tokenize(self, text: str) -> list[tuple[int, int]]:
        raise NotImplementedError
