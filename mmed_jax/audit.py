"""Where a model comes from, on one page to sign: from its folder back to runs, data, prompts, answers and base.

    python -m mmed_jax.audit --model=exports/my-model
    python -m mmed_jax.audit --model=exports/my-model --output=audit.html            (or .md, .txt)
    python -m mmed_jax.audit --model=EXPORT --ledger=data/ledger.sqlite --look_in=/archive/runs,/archive/raw

Walks from an export (or a run) back through stage 2, stage 1 and pretraining to the base, from each run to its record
files, the sets of data_gen they lie in, the requests in the ledger behind these, and the published sources. Every link
is compared: hashes are computed anew of what is at hand. A link that is broken or missing is named (which, expected,
found), and the exit code is 1. What has moved is found below the folders of --look_in. Nothing is changed.
"""

from pathlib import Path

from mmed_jax.common.command_line import Parser
from mmed_jax.common.errors import UserError, WorkError, run_command
from mmed_jax.common.paths import expand_home


def main(argv: list[str] | None = None) -> None:
    """The audit command; see the module's docstring and `--help`."""

    parser = Parser(prog="python -m mmed_jax.audit", description=__doc__)
    parser.add_argument("--model", required=True, metavar="DIR", help="an export, or a run directory")
    parser.add_argument("--output", metavar="FILE", help="write the page there: .html, .md or .txt")
    parser.add_argument("--ledger", metavar="FILE,..", default="", help="ledgers of data_gen behind the data sets")
    parser.add_argument("--look_in", metavar="DIR,..", default="", help="folders that hold what has moved")
    args = parser.parse_args(argv)
    audit(args.model, args.output, _existing(args.ledger, "--ledger"), _existing(args.look_in, "--look_in"))


def audit(model: str, output: str | None, ledgers: list[Path], places: list[Path]) -> None:
    """Walks, prints the page or writes it. Raises UserError; WorkError: a link is broken or missing."""
    from mmed_jax.lineage.audit_page import FORMS, text_page, verdict, write_page
    from mmed_jax.lineage.audit_result import Trail
    from mmed_jax.lineage.data_links import DataWalk
    from mmed_jax.lineage.model_links import ModelWalk

    folder = expand_home(model)
    if not folder.is_dir():
        raise UserError(f"--model={model}: no such folder")
    if output and Path(output).suffix.lower() not in FORMS:
        raise UserError(f"--output={output}: name a file that ends in {', '.join(FORMS)}")
    trail = Trail(places)
    ModelWalk(trail, DataWalk(trail, ledgers)).walk(folder.resolve())
    title = f"Audit of {folder.resolve().name}"
    if output:
        write_page(expand_home(output), trail, title)
        print(verdict(trail))
        for link in trail.broken:
            print(f"{link.state:<8} {link.text}")
        print(f"written  {output}")
    else:
        print(text_page(trail, title), end="")
    if broken := trail.broken:
        more = f" and {len(broken) - 1} more" if len(broken) > 1 else ""
        raise WorkError(f"{verdict(trail)} {broken[0].state} {broken[0].text}{more}")


def _existing(text: str, flag: str) -> list[Path]:
    """Paths with commas between them. Raises UserError: one is not there."""
    paths = [expand_home(part.strip()) for part in text.split(",") if part.strip()]
    if gone := [p for p in paths if not p.exists()]:
        raise UserError(f"{flag}: {gone[0]} does not exist")
    return paths


if __name__ == "__main__":
    run_command(main)
