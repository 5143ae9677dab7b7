"""A process that is refused before it has joined the others: they end with it, instead of waiting for it."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from mmed_jax.common import errors
from mmed_jax.parallel.peers import hush, several_processes


@contextmanager
def refused_together(config: Any) -> Iterator[None]:
    """Around what each process looks at alone, before distributed.initialize; nothing else in a single process.

    One that fails there says why at once, as ever; then it joins the others, who end with its error and exit code.

    Args:
      config: of a run, complete in `distributed` alone.
    """
    try:
        yield
    except Exception as error:
        if several_processes(config):
            refused = error

            def join(code: int) -> None:
                hush(config)
                # Not above: this loads jax, and small mistakes are said before.
                from mmed_jax.parallel import distributed

                distributed.join_refused(config, refused, code)

            errors.before_failing = join
        raise
