"""Why an answer ended: the finish_reason of many servers, and which of them leave an answer that is not whole.

whole     the model ended it. "tool_calls" too: what it wrote before it called a tool that nobody offered
cut       a limit of tokens or of the context ended it
filtered  the endpoint's filter ended it
refused   the model refused
broken    the endpoint ended it: an error, a process that was stopped, no room on the machine
unknown   none of these, also null beside a text: nobody knows whether the text is whole

The words are compared without regard to case and to the marks between their parts ("MAX_TOKENS", "maxTokens").
"""

import re

_WORDS = {
    "whole": (
        "stop",
        "eos",
        "eos_token",
        "end",
        "end_turn",
        "end_of_turn",
        "end_of_text",
        "stop_sequence",
        "stop_token",
        "stop_string",
        "complete",
        "completed",
        "finished",
        "done",
        "tool_call",
        "tool_calls",
        "tool_use",
        "function_call",
        "scored",
    ),
    "cut": (
        "length",
        "max_tokens",
        "max_token",
        "max_new_tokens",
        "max_output_tokens",
        "max_completion_tokens",
        "max_length",
        "model_length",
        "token_limit",
        "length_limit",
        "length_capped",
        "context_length",
        "context_length_exceeded",
        "max_context_length",
        "model_context_window_exceeded",
        "incomplete",
        "truncated",
        "error_limit",
    ),
    "filtered": (
        "content_filter",
        "content_filtered",
        "content_filter_stop",
        "content_policy_violation",
        "safety",
        "image_safety",
        "recitation",
        "blocklist",
        "prohibited_content",
        "spii",
        "sensitive",
        "guardrail_intervened",
        "guardrails",
        "model_armor",
        "blocked",
        "moderation",
        "error_toxic",
    ),
    "refused": ("refusal", "refused"),
    "broken": (
        "error",
        "abort",
        "aborted",
        "cancel",
        "cancelled",
        "canceled",
        "insufficient_system_resource",
        "insufficient_system_resources",
        "network_error",
        "server_error",
        "internal_error",
        "engine_error",
        "model_error",
        "timeout",
        "time_limit",
        "interrupted",
        "preempted",
        "failed",
        "failure",
        "malformed_function_call",
        "unexpected_tool_call",
        "user_cancel",
    ),
}


def _letters(word: str) -> str:
    return re.sub(r"[^a-z0-9]", "", word.lower())


_KINDS = {_letters(word): kind for kind, words in _WORDS.items() for word in words}


def kind_of_ending(reason: object) -> str:
    """ "whole", "cut", "filtered", "refused", "broken" or "unknown" for a finish_reason as the server wrote it."""
    if not isinstance(reason, str):
        return "unknown"
    word = _letters(reason)
    # Of Gemini: FINISH_REASON_STOP, FinishReason.MAX_TOKENS.
    return _KINDS.get(word) or _KINDS.get(word.removeprefix("finishreason"), "unknown")


def is_cut(reason: object) -> bool:
    """Whether a text that ended so is not known to be whole, so that its last sentence may be half of one."""
    return kind_of_ending(reason) in ("cut", "broken", "unknown")


def was_cut(line: dict) -> bool:
    """Whether a line of predictions.jsonl, also of an earlier version, holds an answer that was cut."""
    return line.get("cut", line["finish_reason"] == "length")
