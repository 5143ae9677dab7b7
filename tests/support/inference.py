"""An engine that answers from a table instead of a model, for tests of what is around it."""

import numpy as np

from mmed_jax.inference.engine import Completion


class TableEngine:
    """`answer(prompt_text) -> text`; counts prompts, and stops like Ctrl-C after `stop_after` of them."""

    dtype = np.dtype("float32")

    def __init__(self, tok, answer, stop_after=None):
        self.tok, self.answer, self.stop_after, self.asked = tok, answer, stop_after, []

    def generate(self, prompts, *, max_new_tokens, items=None, on_done=None, on_token=None, **settings):
        out = {}
        # Longest first: results never come in the order of the prompts.
        for i in sorted(range(len(prompts)), key=lambda i: -len(prompts[i])):
            if self.stop_after is not None and len(self.asked) >= self.stop_after:
                raise KeyboardInterrupt
            text = self.tok.decode(prompts[i])
            self.asked.append(text)
            ids = self.tok.encode(self.answer(text), add_special_tokens=False)
            reason = "length" if len(ids) > max_new_tokens else "stop"
            for n, token in enumerate(ids[:max_new_tokens] if on_token else (), 1):
                if on_token(i, token) is True:
                    ids, reason = ids[:n], "stopped"
                    break
            out[i] = Completion(ids[:max_new_tokens], reason)
            if on_done:
                on_done(i, out[i])
        return [out[i] for i in range(len(prompts))]
