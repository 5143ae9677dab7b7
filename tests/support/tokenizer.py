"""A tiny Llama-3-like tokenizer for tests: byte-level BPE, Llama-3's pre-tokenizer and control tokens, 400 entries."""

import functools
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from mmed_jax.data.tokenizers.tokenizer import load_tokenizer

CONTROL_TOKENS = (
    "<|begin_of_text|>",
    "<|end_of_text|>",
    "<|reserved_special_token_0|>",
    "<|reserved_special_token_1|>",
    "<|finetune_right_pad_id|>",
    "<|reserved_special_token_2|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eom_id|>",
    "<|eot_id|>",
    "<|python_tag|>",
)

# Meta-Llama-3-8B-Instruct, tokenizer_config.json.
CHAT_TEMPLATE = (
    "{% set loop_messages = messages %}{% for message in loop_messages %}"
    "{% set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'"
    "+ message['content'] | trim + '<|eot_id|>' %}"
    "{% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}{{ content }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)

# Meta-Llama-3-8B, tokenizer.json, pre_tokenizer.
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)

TEXT = (
    "The patient has a fever and a cough. Which of the following is the best treatment for this patient?",
    "Aspirin inhibits platelet aggregation; the answer is the first option.\n\nAnswer: A\n\nAnswer: B, C",
    "患者有发热和咳嗽。下列哪项是最佳治疗？答案：甲",
    "患者には発熱と咳があります。最も適切な治療はどれですか。正解：",
    "환자는 열과 기침이 있습니다. 가장 좋은 치료는 무엇입니까? 정답: ",
    "Le patient a de la fièvre et de la toux. Quel est le meilleur traitement ? Réponse : ",
    "El paciente tiene fiebre y tos. ¿Cuál es el mejor tratamiento? Respuesta: ",
    "У пациента жар и кашель. Какое лечение лучше всего? Ответ: ",
    "system user assistant",
)


@functools.cache
def _backend_json(vocab_size: int) -> str:
    backend = Tokenizer(models.BPE(ignore_merges=True))
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(CONTROL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator(TEXT * 3, trainer)
    backend.add_special_tokens(list(CONTROL_TOKENS))
    bos = "<|begin_of_text|>"
    backend.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A", special_tokens=[(bos, backend.token_to_id(bos))]
    )
    assert backend.get_vocab_size() == vocab_size, backend.get_vocab_size()
    return backend.to_str()


def tiny_fast_tokenizer(vocab_size: int = 400) -> PreTrainedTokenizerFast:
    """The tokenizer in memory, chat template set; control tokens take the last ids, as in Llama-3."""
    tok = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(_backend_json(vocab_size)),
        bos_token="<|begin_of_text|>",
        eos_token="<|eot_id|>",
        pad_token="<|finetune_right_pad_id|>",
        model_input_names=["input_ids", "attention_mask"],
        clean_up_tokenization_spaces=False,
        model_max_length=131072,
    )
    tok.chat_template = CHAT_TEMPLATE
    return tok


@functools.cache
def meta_tokenizer(path: Path) -> PreTrainedTokenizerFast:
    """The tokenizer of Meta's ranks file, read once for all tests that leave it as it is."""
    return load_tokenizer(path)


def tiny_tokenizer(folder: Path, vocab_size: int = 400) -> Path:
    """Writes a Hugging Face tokenizer folder (tokenizer.json, tokenizer_config.json, chat template) and returns it."""
    path = Path(folder) / "tiny_tokenizer"
    tiny_fast_tokenizer(vocab_size).save_pretrained(path)
    return path
