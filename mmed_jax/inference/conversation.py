"""Several turns with a model in its own chat format: what it has read of them, and what still fits."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from mmed_jax.common.errors import UserError
from mmed_jax.data.chat import chat_prompt_ids
from mmed_jax.inference.text_stream import TextStream


@dataclass(frozen=True)
class Reply:
    """An answer. finish_reason: "stop", "length" (cut) or "stopped" (by who asked); tokens: their number."""

    text: str
    finish_reason: str
    tokens: int


class Conversation:
    """The turns of one conversation; the engine keeps what it has read of them from one question to the next.

    Args:
      engine: mmed_jax.inference.engine.Engine with the model's stop ids. tok: its tokenizer, with a chat format.
      positions: the model's max_position_embeddings: system message, turns and answer together.
      system: system message, "" = none.
      sampling: max_new_tokens, temperature, top_p, top_k, seed, as Engine.generate takes them.

    Attributes:
      engine: may be set later, before the first question.
      messages: questions and answers in turn, the system message apart.
    """

    def __init__(self, engine: Any, tok: Any, positions: int, *, system: str = "", sampling: dict[str, Any]):
        self.engine, self._tok, self._positions = engine, tok, positions
        self.system, self.sampling = system, dict(sampling)
        self.messages: list[dict[str, str]] = []
        self._asked = 0  # questions of all conversations, so that an equal one draws anew

    def reset(self, system: str | None = None) -> None:
        """Begins anew; with another system message where one is given."""
        self.messages.clear()
        self.system = self.system if system is None else system

    def ask(
        self,
        question: str,
        show: Callable[[str], object],
        *,
        stop: Callable[[], bool] = lambda: False,
        dropped: Callable[[int], object] = lambda turns: None,
    ) -> Reply:
        """Answers a question, which with its answer is part of the conversation from then on.

        Oldest turns are left out, and stay so, where all together have not enough positions: an answer gets those of
        max_new_tokens, at most a quarter of all. The system message stays.

        Args:
          show: called with the answer's text as it comes, whole characters only.
          stop: asked at every token; True ends the answer there. One that has no text yet is taken back, with the
            question.
          dropped: called before the answer with the number of turns that were left out, when there are any.

        Raises:
          UserError: the question alone has no place. It is not part of the conversation then, nor when anything else is
            raised.
        """
        before = list(self.messages)
        self.messages.append({"role": "user", "content": question})
        try:
            ids, turns = self._fitting()
            if turns:
                dropped(turns)
            reply = self._answer(ids, show, stop)
        except BaseException:
            self.messages[:] = before
            raise
        if reply.finish_reason == "stopped" and not reply.text.strip():
            self.messages.pop()
        else:
            self.messages.append({"role": "assistant", "content": reply.text})
        return reply

    def _fitting(self) -> tuple[list[int], int]:
        """(ids of the prompt, turns that were left out)."""
        wanted = self._positions - min(self.sampling["max_new_tokens"], self._positions // 4)
        turns = 0
        while len(ids := self.prompt()) > wanted and len(self.messages) > 1:
            del self.messages[:2]
            turns += 1
        if len(ids) >= self._positions:
            system = " with the system message" if self.system else ""
            raise UserError(
                f"the question has {len(ids):,} tokens{system}, and the model's max_position_embeddings is "
                f"{self._positions:,} (question and answer together)"
            )
        return ids, turns

    def prompt(self) -> list[int]:
        """Token ids of the conversation, ready to be continued by the model."""
        system = [{"role": "system", "content": self.system}] if self.system else []
        return chat_prompt_ids(self._tok, [*system, *self.messages])

    def _answer(self, ids: list[int], show: Callable[[str], object], stop: Callable[[], bool]) -> Reply:
        stream, pieces = TextStream(self._tok), []

        def put(text: str) -> None:
            if text:
                pieces.append(text)
                show(text)

        def on_token(_: int, token: int) -> bool:
            put(stream.push(token))
            return stop()

        self._asked += 1
        done = self.engine.generate([ids], **self.sampling, items=[self._asked - 1], on_token=on_token, keep=True)[0]
        put(stream.flush())
        return Reply("".join(pieces), done.finish_reason, len(done.ids))
