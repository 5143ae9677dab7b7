"""Source text as data inside a prompt: it can't end its own fence, smuggle control tokens or hide characters.

A passage that says "ignore the above" stays what it is, text between two marks; every prompt says before and after the
marks that nothing between them is an instruction. Whatever a source holds, the part of a prompt outside the fences is
the same (tests). What a model answers is checked on the way back: fence marks and control tokens in it are a rejection.

Only what prompts hold is changed. Records are made from the model's answer and from the unchanged parent.
"""

import hashlib
import json
import re
import unicodedata

OPEN, CLOSE = "<<<DATA", "DATA>>>"
_FENCE = re.compile(rf"{OPEN} ([0-9a-f]{{12}})\n(.*?)\n{CLOSE} \1", re.DOTALL)
_MARK = re.compile(r"<<<\s*DATA|DATA\s*>>>", re.IGNORECASE)

_NEWLINES = re.compile("\r\n?|[\x0b\x0c\x85\u2028\u2029]")
# Control characters but tab and newline, halves of surrogate pairs, noncharacters.
_CONTROLS = re.compile("[\x00-\x08\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufdd0-\ufdef\ufffe\uffff]")
# Unicode category Cf, format characters: zero width, direction marks, soft hyphen, tags.
INVISIBLE = re.compile(
    "[\u00ad\u0600-\u0605\u061c\u06dd\u070f\u0890\u0891\u08e2\u180e\u200b-\u200f\u202a-\u202e\u2060-\u2064\u2066-\u206f"
    "\ufeff\ufff9-\ufffb\U000110bd\U000110cd\U00013430-\U0001343f\U0001bca0-\U0001bca3\U0001d173-\U0001d17a"
    "\U000e0001\U000e0020-\U000e007f]"
)
# A variation selector means something after a Han character only; runs of them elsewhere carry hidden bytes.
_SELECTORS = re.compile("(?<![\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff])[\U000e0100-\U000e01ef]")

# Strings that chat formats use as structure, as far as a tokenizer may turn them into one control id: Llama 3, ChatML,
# DeepSeek (full-width bars), Llama 2 and Mistral, Gemma, sentencepiece, GLM, BERT, thinking and tool marks.
_TAGS = (
    r"s|unk|pad|bos|eos|mask|start_of_turn|end_of_turn|start_of_image|think|thinking|tool_call|tool_response|tool|"
    r"function|system|user|assistant|im_start|im_end|endoftext"
)
_BRACKETS = r"INST|gMASK|sMASK|CLS|SEP|PAD|UNK|MASK|TOOL_CALLS|AVAILABLE_TOOLS|TOOL_RESULTS|SYSTEM_PROMPT|BOS|EOS"
_CONTROL = re.compile(
    rf"[<＜](?=[|｜])|[|｜](?=[>＞])|<(?=/?(?:{_TAGS})\s*/?>)|\[(?=/?(?:{_BRACKETS})\])|<(?=</?SYS>>)", re.IGNORECASE
)

# What tries to steer, in the seven languages. Only a flag: a text on prompt injection may say such things in earnest.
_STEERING = re.compile(
    r"(?:ignore|disregard|forget|override)\s+(?:\w+\s+){0,3}?(?:previous|above|prior|earlier|preceding|all)\b"
    r"(?:\s+\w+){0,2}?\s*(?:instructions?|prompts?|rules?|directions?|messages?|text)?"
    r"|(?:you are now|from now on,? you|new instructions?:|system prompt|reveal your (?:instructions|prompt))"
    r"|^\W{0,3}(?:system|developer)(?: message)?\s*:\s*\S"
    r"|\b(?:print|output|reveal|repeat) (?:the|your) (?:api key|key|prompt|instructions)\b"
    r"|(?:忽略|无视|忽视|不要理会).{0,8}(?:以上|上述|上面|之前|前面|先前|所有).{0,8}(?:指令|指示|内容|要求|规则|提示)?"
    r"|(?:上記|以前|これまで|前)の.{0,8}(?:指示|命令|ルール|プロンプト).{0,6}(?:無視|忘れ)"
    r"|(?:위|이전|앞).{0,8}(?:지시|명령|규칙|프롬프트|내용).{0,6}(?:무시|잊)"
    r"|(?:ignore[rz]?|oublie[rz]?|ne (?:tenez|tiens) (?:pas|aucun) compte)\s"
    r".{0,20}(?:instructions?|consignes?|ce qui précède|ci-dessus)"
    r"|(?:ignor[ae]|olvid[ae]|haz caso omiso|no (?:hagas|haga|hagan) caso|no (?:tengas?|tengan) en cuenta)\s"
    r".{0,20}(?:instrucciones|anterior(?:es)?|lo de arriba)"
    r"|(?:игнорируй(?:те)?|забудь(?:те)?|проигнорируй(?:те)?|не обращай(?:те)? внимания на)\s.{0,25}"
    r"(?:инструкци|указани|предыдущ|выше)",
    re.IGNORECASE | re.MULTILINE,
)


def neutralise(text: str) -> str:
    """`text` for use inside a prompt: NFC, no invisible or control characters, control strings split by a space.

    Idempotent. "<|eot_id|>" becomes "< |eot_id| >", "[INST]" "[ INST]", "<<<" "< < <": a reader sees the same, a
    tokenizer no control token. Line ends of every kind become newlines; format characters (zero width, direction
    marks, tags: Unicode category Cf) are left out.
    """
    text = _CONTROLS.sub("", _NEWLINES.sub("\n", text))
    if not text.isascii():
        text = unicodedata.normalize("NFC", _SELECTORS.sub("", INVISIBLE.sub("", text)))
    text = re.sub(r"<{3,}|>{3,}", lambda m: " ".join(m[0]), text)
    return _CONTROL.sub(lambda m: m[0] + " ", text)


def fence(data: str | dict | list) -> str:
    """`data` between two marks that it can't contain. Objects become JSON, their strings neutralised one by one.

    The marks carry 12 hex digits of the text's own SHA-256, so equal text gives an equal prompt (and request key).
    """
    text = neutralise(data) if isinstance(data, str) else json.dumps(_each(data), ensure_ascii=False, indent=1)
    ident = hashlib.sha256(text.encode("utf-8")).hexdigest()[:12]
    return f"{OPEN} {ident}\n{text}\n{CLOSE} {ident}"


def _each(value: object) -> object:
    if isinstance(value, str):
        return neutralise(value)
    if isinstance(value, dict):
        return {neutralise(str(k)): _each(v) for k, v in value.items()}
    return [_each(v) for v in value] if isinstance(value, list | tuple) else value


def inside(prompt: str) -> list[str]:
    """The texts between the fences of a prompt, in order."""
    return [m[2] for m in _FENCE.finditer(prompt)]


def outside(prompt: str) -> str:
    """A prompt with the text of its fences (and their hashes) taken out: all that may instruct."""
    return _FENCE.sub(f"{OPEN} {CLOSE}", prompt)


def leaks(answer: str) -> str:
    """What of a fence or a chat format stands in a model's answer, "" when nothing does."""
    found = _MARK.search(answer) or _CONTROL.search(answer) or _CONTROLS.search(answer)
    return "" if found is None else answer[found.start() : found.start() + 24]


def steers(text: str) -> bool:
    """Whether a source text speaks to the model ("ignore the above"), in any of the seven languages."""
    return _STEERING.search(neutralise(text)) is not None
