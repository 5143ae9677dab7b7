"""Uploads a built set to the Hugging Face hub as a data set, with its card.

    HF_TOKEN=.. python -m data_gen push --set=sets/mmed_ift --repo=ORG/mmed_ift [--private]

The set is what `build` wrote, and every file is compared with the hash that build.json has of it; README.md, the card,
may have been written on. Nothing else that lies in the folder goes up, a ledger least of all. The token comes from
HF_TOKEN in the environment. The same call goes on with an upload that broke off. A public repository takes no rows
whose licence is not known to allow it.
"""

from pathlib import Path

from data_gen.sets.licenses import terms
from mmed_jax.common import console, jsonl
from mmed_jax.common.command_line import Parser
from mmed_jax.common.errors import UserError, run_command
from mmed_jax.common.hashes import file_hash
from mmed_jax.common.hub_upload import check_access, check_name, upload
from mmed_jax.common.paths import expand_home
from mmed_jax.common.progress import counting_bar

SUMMARY = "a built set to the Hugging Face hub"
_BUILD, _CARD = "build.json", "README.md"
# Of an earlier upload: rows that the new set does not have.
_STALE = ("jsonl/*", "parquet/*", "tfds/*", "Train/*", "Test/*", "records/*")
_CLOSED = ("none", "unverified", "no-derivatives")  # kinds of terms that no public copy is made under


def main(argv: list[str] | None = None) -> None:
    """The command. Raises UserError: no whole set, a licence, the name or the token; WorkError: the hub fails."""
    parser = Parser(names_itself=True, prog="python -m data_gen push", description=__doc__)
    parser.add_argument("--set", metavar="DIR", help="what `data_gen build` wrote")
    parser.add_argument("--repo", metavar="ORG/NAME", help="the data set on the hub")
    parser.add_argument("--private", action="store_true", help="make the repository a private one")
    args = parser.parse_args(argv)
    for name in ("set", "repo"):
        if not getattr(args, name):
            raise UserError(f"push: --{name} is missing (--help shows the flags)")
    console.outlive()
    folder = expand_home(args.set).resolve()
    check_name("--repo", args.repo)
    build = _summary(folder)
    _check_licences(build, args.private)
    check_access("--repo")
    names = _check_files(folder, build)
    rows = sum((build.get("rows") or {}).values())
    print(f"pushing  {folder}: {rows:,} rows, {len(names):,} files, to {args.repo}", flush=True)
    private = " --private" if args.private else ""
    again = f"python -m data_gen push --set={args.set} --repo={args.repo}{private}"
    address = upload(
        "--repo", folder, args.repo, kind="dataset", private=args.private, stale=_STALE, only=names, again=again
    )
    print(f"pushed   {address}", flush=True)


def _summary(folder: Path) -> dict:
    try:
        build = jsonl.loads((folder / _BUILD).read_bytes(), dict)
    except (OSError, ValueError) as e:
        raise UserError(f"--set={folder}: is no set of `data_gen build` ({_BUILD} cannot be read)") from e
    if not isinstance(build.get("sha256"), dict) or _CARD not in build["sha256"]:
        raise UserError(
            f"--set={folder}: was built by an earlier version, which wrote no hashes; build it again (what is in the "
            "ledger is not paid for twice)"
        )
    return build


def _check_licences(build: dict, private: bool) -> None:
    closed = {text: n for text, n in (build.get("rows_by_license") or {}).items() if terms(text).kind in _CLOSED}
    if closed and not private:
        shown = ", ".join(f"{text or 'none stated'} ({n:,} rows)" for text, n in sorted(closed.items()))
        raise UserError(
            f"--repo: the licence of some rows is not known to allow a public copy: {shown}; build with "
            "--licenses=open, or add --private"
        )
    others = {text: n for text, n in (build.get("rows_by_license") or {}).items() if terms(text).kind != "open"}
    for text, n in sorted(others.items()):
        print(f"licence  {text}: {n:,} rows, {terms(text).note}")


def _check_files(folder: Path, build: dict) -> list[str]:
    """Names of the files that go up. Raises UserError: one is missing or was changed."""
    changed = []
    with counting_bar("hashing", len(build["sha256"]), unit=" files") as bar:
        for name, digest in build["sha256"].items():
            path = folder / name
            if not path.is_file() or name != _CARD and file_hash(path) != digest:
                changed.append(name)
            bar.update()
    if changed:
        more = f" and {len(changed) - 5} more" if len(changed) > 5 else ""
        raise UserError(f"--set={folder}: is not as it was built: {', '.join(changed[:5])}{more}; build it again")
    return [*build["sha256"], _BUILD]


if __name__ == "__main__":
    run_command(main)
