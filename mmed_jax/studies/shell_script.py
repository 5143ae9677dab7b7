"""The steps of a study as shell commands, in an order in which they can be run."""

import shlex
from pathlib import Path

from mmed_jax.studies.tasks import Plan, is_done


def shell_script(plan: Plan, call: str, python: str = "python") -> str:
    """A bash script of the ordinary commands; it ends at the first that fails or is stopped, and may be run again.

    Args:
      call: the last line: the study itself, which finds what was done.
    """
    lines = [
        "#!/usr/bin/env bash",
        f"# The study {plan.study.settings.name}:{plan.study.settings.variant}. Run it again after an interruption.",
        "set -euo pipefail",
        f"cd {shlex.quote(str(Path.cwd()))}",
    ]
    for number, task in enumerate(plan.tasks, start=1):
        lines += ["", f"# [{number}/{len(plan.tasks)}] {task.label}; for: {', '.join(task.arms)}"]
        if is_done(task):
            lines.append("# done before")
            continue
        folder, log = shlex.quote(str(task.folder)), shlex.quote(str(task.log))
        lines.append(f"mkdir -p {folder}")
        command = f"{task.shell(python)} 2>&1 | tee -a {log}"
        if task.step.command in ("export", "merge"):  # which refuse a folder that is there
            command = f"[ -e {shlex.quote(str(task.result))} ] || {command}"
        lines.append(command)
    return "\n".join([*lines, "", call, ""])
