"""Chat formats, declared: what stands around the messages of a conversation. One row a format.

A tokenizer has the format whose control tokens its vocabulary holds (syntax_of). Everything else follows from the row:
the ids of training, evaluation and generation (chat.py), the template in exported folders, the tokens that end an
answer.
"""

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

BOS, EOS, EOT, EOM = "<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>", "<|eom_id|>"
START_HEADER, END_HEADER = "<|start_header_id|>", "<|end_header_id|>"
PAD = "<|finetune_right_pad_id|>"


@dataclass(frozen=True)
class ChatSyntax:
    """One chat format: `begin`, then for every message `open` role `close` text `end` `after`.

    Attributes:
        name: as it is recorded. title: as it is called in messages.
        controls: the tokens it is made of, which a vocabulary must hold. Everything else in the strings below is text.
        begin: the token in front of a conversation; "" = none.
        open, close: what stands before and behind the role's name.
        end: the token that ends a message; trained behind an answer, and the tokenizer's end token.
        after: text behind it, not trained.
        stops: tokens that end an answer as well, where the vocabulary holds them.
        pads: expressions for tokens to pad with, the best first, where the tokenizer names none that is no stop token.
    """

    name: str
    title: str
    controls: tuple[str, ...]
    begin: str
    open: str
    close: str
    end: str
    after: str = ""
    stops: tuple[str, ...] = ()
    pads: tuple[str, ...] = ()

    @property
    def template(self) -> str:
        """The chat template (Jinja) that writes this format; contents are trimmed."""
        begin = "{{- bos_token }}" if self.begin else ""
        return (
            f"{begin}{{%- for message in messages %}}"
            f"{{{{- '{self.open}' + message['role'] + '{self.close}' }}}}"
            f"{{{{- message['content'] | trim + '{self.end}{self.after}' }}}}"
            "{%- endfor %}"
            f"{{%- if add_generation_prompt %}}{{{{- '{self.open}assistant{self.close}' }}}}{{%- endif %}}"
        )

    def header(self, role: str) -> list[str]:
        """What stands before the text of a message of `role`, cut at the control tokens."""
        cut = re.split("(" + "|".join(map(re.escape, self.controls)) + ")", f"{self.open}{role}{self.close}")
        return [part for part in cut if part]


# Plain Llama-3: begin of text once, then every message behind its header and closed by <|eot_id|>; no dated header.
LLAMA3 = ChatSyntax(
    name="llama3",
    title="Llama-3",
    controls=(BOS, START_HEADER, END_HEADER, EOT),
    begin=BOS,
    open=START_HEADER,
    close=f"{END_HEADER}\n\n",
    end=EOT,
    stops=(EOS, EOM),
    pads=(re.escape(PAD), r"<\|reserved_special_token_\d+\|>", re.escape(EOS)),
)
# ChatML as SmolLM and Qwen write it, without a default system message. It has no token for the beginning.
CHATML = ChatSyntax(
    name="chatml",
    title="ChatML",
    controls=("<|im_start|>", "<|im_end|>"),
    begin="",
    open="<|im_start|>",
    close="\n",
    end="<|im_end|>",
    after="\n",
    stops=("<|endoftext|>", EOS, "</s>"),
    pads=(re.escape(PAD), r"<pad>|<\|pad\|>|\[PAD\]", r"<\|reserved_special_token_\d+\|>", r"<\|endoftext\|>"),
)
SYNTAXES = (LLAMA3, CHATML)


def token_id(tok: "PreTrainedTokenizerFast", token: str | None) -> int | None:
    """The id of a token of the vocabulary; None when it holds no such token."""
    return None if token is None else tok.backend_tokenizer.token_to_id(token)


def missing(tok: "PreTrainedTokenizerFast", syntax: ChatSyntax) -> list[str]:
    """The control tokens of `syntax` that the vocabulary of `tok` does not hold."""
    return [c for c in syntax.controls if token_id(tok, c) is None]


def syntax_of(tok: "PreTrainedTokenizerFast") -> ChatSyntax | None:
    """The chat format of `tok`, by the control tokens in its vocabulary; None when it has those of none.

    Of several it is the one whose tokens its own chat template names, when it names one's only; else the one whose end
    token is the tokenizer's; else the first of SYNTAXES.
    """
    found = [s for s in SYNTAXES if not missing(tok, s)]
    if len(found) > 1:
        template = tok.chat_template or ""
        template = template if isinstance(template, str) else str(template.get("default", ""))
        named = [s for s in found if all(c in template for c in s.controls if c != s.begin)]
        found = named if len(named) == 1 else [s for s in found if s.end == tok.eos_token] or found
    return found[0] if found else None


def lacks(tok: "PreTrainedTokenizerFast") -> str:
    """What a tokenizer without chat format would need: every format with its missing control tokens."""
    return ", ".join(f"{s.name} needs {' '.join(missing(tok, s))}" for s in SYNTAXES)
