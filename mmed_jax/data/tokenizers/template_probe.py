"""What a foreign chat template makes of a conversation: in a process of its own, with little time and little memory.

A template is a program. The sandbox that chat templates run in keeps it from the machine, and lets it count to the end
of time or ask for all memory there is: `{% for i in range(99999) %}` within another, `{{ "a" * 20000000000 }}`.

    python -m mmed_jax.data.tokenizers.template_probe     one JSON object from stdin; a JSON list of texts, or null
"""

import functools
import json
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

SECONDS = 1  # of computing; a template of a model takes milliseconds
WAIT_SECONDS = 30  # in all, on a machine that has much else to do
MEMORY = 1 << 30
LONGEST = 1 << 20


def render(template: str, messages: list[dict], tokens: dict[str, str]) -> list[str] | None:
    """The texts of `messages` without and with generation prompt; None where the template fails or does not end.

    Args:
      tokens: named tokens ("bos_token") that the template may use.
    """
    asked = json.dumps({"template": template, "messages": messages, "tokens": tokens})
    return _render(asked)


@functools.lru_cache(maxsize=64)
def _render(asked: str) -> list[str] | None:
    package = Path(__file__).resolve().parents[3]
    try:
        child = subprocess.run(
            [sys.executable, "-m", "mmed_jax.data.tokenizers.template_probe"],
            input=asked.encode(),
            capture_output=True,
            timeout=WAIT_SECONDS,
            cwd=package,
            env={**os.environ, "PYTHONPATH": str(package)},
            check=False,
        )
        return json.loads(child.stdout) if child.returncode == 0 else None
    except (OSError, ValueError, subprocess.TimeoutExpired):
        return None


def compiled(template: str) -> Any:
    """A template in the sandbox and with the names that transformers gives to chat templates."""
    import datetime

    import jinja2
    from jinja2.ext import Extension, loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """`{% generation %}`, which marks what is trained, shows what stands in it."""

        tags = {"generation"}

        def parse(self, parser: Any) -> Any:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    def fail(message: str) -> None:
        raise jinja2.exceptions.TemplateError(message)

    def tojson(
        x: object, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
    ) -> str:
        return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    env = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols])
    env.filters["tojson"] = tojson
    env.globals["raise_exception"] = fail
    env.globals["strftime_now"] = lambda form: datetime.datetime.now().strftime(form)
    return env.from_string(template)


def main() -> None:
    """One request of `render`."""
    asked = json.loads(sys.stdin.buffer.read())
    import jinja2  # noqa: F401  its time is not the template's

    # The timer ends the process, whatever it is at; unless its signal is ignored, which a child inherits from a
    # process that has used a profiler.
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    template = compiled(asked["template"])
    texts = [
        template.render(
            messages=asked["messages"], tools=None, documents=None, add_generation_prompt=g, **asked["tokens"]
        )
        for g in (False, True)
    ]
    print(json.dumps(texts if sum(map(len, texts)) <= LONGEST else None))


if __name__ == "__main__":
    main()
