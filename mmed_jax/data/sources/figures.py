"""Questions that speak of a figure they were published without: no text can answer them, so training leaves them out.

Sets that say so in a field (HEAD-QA, IgakuQA) need none of this. The others show it only in their wording: "A
photograph of the lesion is shown.", "the structure marked with arrow", "见图19". The patterns are made for precision: a
question whose tables and laboratory values stand in its text must stay. Each was read against MedQA, MedMCQA, CMExam
and CMB.
"""

import re

from mmed_jax.data.records.schema import LETTERS

_NOUN = (
    r"(?:image|figure|fig|exhibit|picture|photograph|photo|diagram|graph|illustration|drawing|(?:colou?r )?plate|"
    r"photomicrograph|radiograph)s?\b"
)
_VIEW = (
    r"(?:x ?-? ?ray|cxr|radiograph|(?:ce)?ct|mri|scan|ecg|ekg|smear|biopsy|histology|histopatholog\w+|curve|"
    r"flow ?cha(?:rt)?|pattern)s?"
)
_SEEN = r"(?:shown?|seen|depicted|displayed|demonstrated|marked|presented|illustrated|indicated|given)"
# Sentences that announce values: these follow as text.
_VALUES = r"(?:labs?|laboratory|blood ?(?:gas|work)|values|panel|levels|data|table|test results|chemistry)"
_IN_SENTENCE = r"(?:[^.?!|]|\.\d)*"

_ENGLISH = (
    # Figure A, Image 1
    r"\b(?:[Ff]ig(?:ure|\.)?s?|Images?|Exhibits?) ?(?:[A-F]|[1-9]\d?)\b(?![.,]\d)",
    # (see image), (shown in the picture), graph (as shown below)
    rf"(?i)\((?:[^()]*\b(?:see|refer to|shown|seen)\b[^()]*)?(?:the )?{_NOUN}\)|\b(?:see|refer to) (?:the )?{_NOUN}",
    r"(?i)\(shown\)|\bgraph \(as shown below\)",
    # shown in the accompanying image
    rf"(?i)\b{_SEEN} (?:in|on|by) (?:(?:the|this) )?(?:given |following |accompanying )?{_NOUN}",
    rf"(?i)\b(?:accompanying|attached) {_NOUN}|\b(?:the|this) {_NOUN} (?:provided|below)\b|\bfindings in the {_NOUN}",
    rf"(?i)\bin (?:this|the following) {_NOUN}|\bthe fig(?:ure)? shows|^figure depicts|\bfigure was not provided",
    rf"(?i)\bthe (?:microscopic )?{_NOUN} (?:depicts|illustrates)|\bfollowing graph is displayed|^video based question",
    # A photograph of the rash is shown. (A list of values would begin with a colon.)
    rf"(?i)(?:^|[.?!|] )(?!{_IN_SENTENCE}\b{_VALUES}\b){_IN_SENTENCE}\b(?:is|are|obtained|performed) "
    r"(?:shown|depicted|displayed|presented)(?: below| in comparison\b[^.]*)?\.",
    rf"(?i)\b{_VIEW}\b(?:(?!\b{_VALUES}\b)[^.?:|])* (?:shown|given|depicted|provided|presented) below\b",
    rf"(?i)\b{_VIEW} (?:is|are) shown\.",
    r"(?i)\bx-ray was taken as shown|\bthe following x-ray was obtained|\bwith the given x-?ray|\bslides shown\b",
    r"(?i)\bthe case shown\b|\bpicture of [^.]* is given below|^given below is the diagram",
    # devices and anatomy to be named
    r"(?i)(?:^|\bthe )given (?:below )?(?:instrument|device|deformity)\b|\binstrument given\b",
    r"(?i)\bmarked \(?(?:with )?(?:an )?arrow|\b(?:the|following) marked (?:structure|muscle|arrow|nerve|area)",
)
# "图" alone ends many a word (心电图, 超声心动图); 可见图像 and 例如图形 are none either.
_CHINESE = (r"附图|暂无图|(?<![诸例比])如[下上左右]?图(?![像形])|(?<![可未])见[下上左右附]?图(?![像形谱])",)
_PATTERNS = {"en": [re.compile(p) for p in _ENGLISH], "zh": [re.compile(p) for p in _CHINESE]}
# Options "A", "B", "C", "D" are marks in a figure, unless letters are names in medicine.
_LETTER_NAMES = re.compile(r"(?i)\b(?:cluster|hepatitis|vitamin|type|class|group|category|grade|stage [A-D])\b")


def needs_figure(language: str, question: str, options: dict[str, str]) -> bool:
    """Whether the wording of a multiple-choice question points at a figure; English and Chinese, else False."""
    texts = [text.strip(" .()") for text in options.values()]
    if language == "en" and texts == list(LETTERS[: len(texts)]) and not _LETTER_NAMES.search(question):
        return True
    question = " ".join(question.split())
    return any(p.search(question) for p in _PATTERNS.get(language, ()))
