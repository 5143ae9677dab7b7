"""When an unusable answer is asked for again: a cut one with more room, one of wrong form with another seed."""

from dataclasses import replace

from mmed_jax.llm_api.types import Job

# Answers that another draw may mend. Not "length" (needs room) and not a fault of the input.
REDRAWN = (
    "schema",
    "language",
    "refusal",
    "boilerplate",
    "control",
    "copy",
    "too_short",
    "too_long",
    "repetition",
    "key",
    "options",
    "numbers",
    "facts",
)


def redraw(job: Job, reason: str, attempt: int, redraws: int) -> Job | None:
    """The job to run instead after failed attempt number `attempt` (from 1), with a new key; None: give up.

    A cut answer gets its room doubled, twice at most; another of REDRAWN the next seed, `redraws` times at most.
    """
    params = dict(job.request.params)
    if reason == "length":
        limit = "max_tokens" if "max_tokens" in params else "max_completion_tokens"
        if attempt > 2 or params.get(limit) is None:
            return None
        params[limit] *= 2
    elif reason in REDRAWN and attempt <= redraws:
        params["seed"] = params.get("seed", 0) + 1
    else:
        return None
    return replace(job, request=replace(job.request, params=params))
