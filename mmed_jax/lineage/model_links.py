"""From an export to its runs, stage by stage, to the base: files, checkpoints, what each began with.

An export's mmed_jax_export.json holds the SHA-256 of its files and, of each stage, that of the checkpoint's manifest,
which holds checksums of the checkpoint's files. A checkpoint holds the fingerprint of the weights its run began with.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmed_jax.checkpoints.run_directory import CHECKPOINTS, read_meta, step_folders
from mmed_jax.common.checksums import CannotRead, shorten, verify_manifest
from mmed_jax.common.errors import UserError, WorkError, one_line
from mmed_jax.data.records.schema import LANGUAGE_NAMES
from mmed_jax.hf.export_folder import MARKER, README
from mmed_jax.hf.folder_hash import hash_files, weight_files, weights_hash
from mmed_jax.hf.licences import licence_of
from mmed_jax.hf.load import read_json
from mmed_jax.hf.open_model import identity, open_model
from mmed_jax.hf.provenance import KEY, describe_stage, manifest_hash, provenance_of, without_places
from mmed_jax.lineage.audit_result import Section, Trail
from mmed_jax.lineage.data_links import DataWalk

_RANDOM = "random weights"
_DEEPEST = 8  # models behind one another; more are a circle


class ModelWalk:
    """Follows models. data: follows their record files."""

    def __init__(self, trail: Trail, data: DataWalk):
        self._trail, self._data = trail, data

    def walk(self, folder: Path, depth: int = 0) -> None:
        """From a folder: an export, or a run. Raises UserError: neither of the two."""
        if (folder / MARKER).is_file():
            self._export(folder, read_json(folder / MARKER), depth)
        elif step_folders(folder):
            source = open_model(folder, adapter_only=True)
            self._provenance(self._trail.section(f"Run {folder.name}"), provenance_of(source), depth)
        else:
            raise UserError(
                f"--model={folder}: is no export of this program (no {MARKER}) and no run; what others have made has "
                "no record to follow"
            )

    def _export(self, folder: Path, marker: Mapping[str, Any], depth: int) -> None:
        section = self._trail.section(f"Model {folder.name}")
        with section.reading(MARKER):
            self._follow(section, folder, marker, depth)

    def _follow(self, section: Section, folder: Path, marker: Mapping[str, Any], depth: int) -> None:
        """What an export's marker says, and the way back from there."""
        section.fact("made by", marker.get("made_by"))
        section.fact("form", f"GGUF {marker['gguf']}" if marker.get("gguf") else "")
        tuning = marker.get("tuning")
        section.fact("trained", tuning.get("text") if isinstance(tuning, dict) else "")
        section.fact("chat format", marker.get("chat_format"))
        section.fact("tokenizer", f"sha256 {marker['tokenizer_hash']}" if marker.get("tokenizer_hash") else "")
        section.fact(f"SHA-256 of {MARKER}", hash_files([folder / MARKER])[MARKER])
        _results(section, marker)
        _files(section, folder, marker)
        provenance = marker.get(KEY)
        if not isinstance(provenance, dict) or not provenance.keys() >= {"base", "stages", "complete"}:
            section.missing("how it was made", f"{KEY} in {MARKER}")
            return
        self._provenance(section, provenance, depth)

    def _provenance(self, section: Section, provenance: Mapping[str, Any], depth: int) -> None:
        base, stages = provenance["base"], provenance["stages"]
        name = _RANDOM if base["random"] else base["name"] or "not known"
        section.fact("base", name)
        licence = f"{base['licence']} (by {base['licence_from']})" if base["licence"] else "not known"
        section.fact("licence of the base", "" if base["random"] else licence)
        if base["licence_from"] == "its name":
            section.compare("licence of the base by its name", base["licence"], licence_of(base["name"])[0])
        if not provenance["complete"] and not provenance.get("merged"):
            section.missing("the way back to the base", "each stage's start", "not recorded, or not at hand")
        own = stages[provenance.get("merged_stages", 0) :]
        if not stages and not provenance.get("merged"):
            section.fact("training", "none is recorded")
        for stage in reversed(own):
            self._stage(stage)
        for parent in provenance.get("merged", ()):
            self._parent(section, parent, depth)

    def _parent(self, section: Section, parent: Mapping[str, Any], depth: int) -> None:
        what = f"parent {parent['name']} (weight {parent['weight']:g})"
        folder = self._trail.find(parent["path"])
        if folder is None:
            section.missing(what, parent["sha256"])
            return
        holds = section.compare(what, parent["sha256"], weights_hash(hash_files(weight_files(folder))))
        marker, file = parent.get("marker"), folder / MARKER
        found = hash_files([file])[MARKER] if file.is_file() else ""
        if marker or found:
            section.compare(f"{MARKER} of parent {parent['name']}", marker or "", found)
        if holds and found and depth < _DEEPEST:
            self.walk(folder, depth + 1)
        elif holds and found:
            section.missing(f"what parent {parent['name']} was made from", "a mean of means that ends", "too deep")

    def _stage(self, stage: Mapping[str, Any]) -> None:
        section = self._trail.section(f"Stage {stage['name']}")
        section.fact("trained", stage["method"])
        section.fact("steps", stage["step"])
        section.fact("tokens seen", stage["tokens_seen"])
        settings = ", ".join(f"{k}={v}" for k, v in stage["settings"].items())
        section.fact("settings", settings)
        section.fact("validation", ", ".join(f"{k} {v:.6g}" for k, v in stage["validation"].items()))
        rows = [
            (r["source"], r["license"] or "see its corpus", r["language"], r["records"]) for r in stage["data"] or ()
        ]
        if rows:
            section.tables.append(("Records", ("source", "licence", "language", "records"), rows))
        else:
            section.missing("what it was trained on", "counts by source, licence and language")
        self._checkpoint(section, stage)
        if "files" in stage:
            self._data.files(section, stage["files"])
        else:
            section.missing("record files", "their hashes in the checkpoint")
        self._start(section, stage)

    def _checkpoint(self, section: Section, stage: Mapping[str, Any]) -> None:
        run = stage.get("run")
        if not isinstance(run, dict):
            section.missing("checkpoint", "its hash in the export")
            return
        what = f"checkpoint {run['path']}, step {run['step']}"
        folder = self._trail.find(run["path"])
        if folder is None:
            section.missing(what, run["sha256"])
            return
        if not section.compare(what, run["sha256"], manifest_hash(folder, run["step"])):
            return
        try:
            problems = verify_manifest(folder / CHECKPOINTS / str(run["step"]))
        except CannotRead as e:
            problems = [one_line(e)]
        problem = "no manifest" if problems is None else shorten(problems) if problems else ""
        section.check("files of the checkpoint", "as in its manifest", problem)
        try:
            meta = read_meta(folder, run["step"])
        except (OSError, ValueError) as e:
            section.missing("record of the checkpoint", "meta.json", one_line(e))
            return
        differing = _differing(stage, folder, meta)
        problem = f"it says otherwise than the export: {', '.join(differing)}" if differing else ""
        section.check("record of the checkpoint", "as in the export", problem)

    def _start(self, section: Section, stage: Mapping[str, Any]) -> None:
        """What the run began with, and the weights beneath its adapter."""
        start = stage.get("start")
        if not isinstance(start, dict) or "path" not in start:
            section.missing("what it began with", "a record in the checkpoint")
        elif not start["path"]:
            section.fact("began with", _RANDOM)
        else:
            self._weights(section, f"began with {start['path']}", start)
        if base := stage.get("base"):
            self._weights(section, f"weights beneath the adapter, {base['path']}", base)

    def _weights(self, section: Section, what: str, record: Mapping[str, Any]) -> None:
        """Compares the fingerprint of weights with the one that a checkpoint has of them."""
        step = record.get("step")
        what += f", step {step}" if step is not None else ""
        folder = self._trail.find(record["path"])
        if folder is None:
            section.missing(what, f"fingerprint {record['fingerprint']}")
            return
        try:
            found = identity(open_model(folder, step, record.get("ignore_keys") or ()))["fingerprint"]
        except (UserError, WorkError, OSError) as e:
            section.missing(what, f"fingerprint {record['fingerprint']}", one_line(e))
            return
        section.compare(what, f"fingerprint {record['fingerprint']}", f"fingerprint {found}")


def _differing(stage: Mapping[str, Any], folder: Path, meta: Mapping[str, Any]) -> list[str]:
    """Fields of a stage in which an export and the record of its checkpoint differ; settings by their keys."""
    config = meta.get("config") or {}
    own = describe_stage(folder, stage["step"], stage["method"], meta, config)
    keys = ["tokens_seen", "data", "validation", "files", "start", "base", *(["name"] if config.get("name") else [])]
    found = [key for key in keys if _plain(stage.get(key)) != _plain(own.get(key))]
    if isinstance(meta.get("lora"), Mapping) == (stage["method"] == "all weights"):
        found.append("method")
    if stage["run"]["step"] != stage["step"]:
        found.append("step")
    # An export of another version may have fewer settings; those that it has are the run's.
    settings = own["settings"]
    return found + [k for k, v in stage["settings"].items() if _plain(v) != _plain(settings.get(k))]


def _plain(value: Any) -> str:
    """JSON values as text: NaN equals itself, and a path its name (an uploaded record has no more)."""
    return json.dumps(without_places(value), sort_keys=True)


def _results(section: Section, marker: Mapping[str, Any]) -> None:
    """Evaluations that the export was given."""
    for result in marker.get("results") or ():
        rows = []
        for row in result["rows"]:
            low, high = (f"{100 * x:.1f}" for x in row["interval95"])
            language = LANGUAGE_NAMES.get(row["language"], row["language"])
            rows.append((row["benchmark"], language, row["count"], f"{100 * row['accuracy']:.1f}", f"{low} to {high}"))
        title = " ".join([f"Results. {result['setting']}", *result["notes"]])
        section.tables.append((title, ("benchmark", "language", "questions", "accuracy, %", "95 % interval"), rows))
    if not marker.get("results"):
        section.fact("results", "no evaluation was given when it was exported")


def _files(section: Section, folder: Path, marker: Mapping[str, Any]) -> None:
    """Files of an export by their SHA-256; its card may have been written on."""
    hashes = marker.get("sha256")
    if not isinstance(hashes, dict):
        section.missing("hashes of the model's files", f"sha256 in {MARKER}")
        return
    present = {p.name for p in folder.iterdir() if p.name != MARKER}
    found = hash_files([p for name in sorted(hashes.keys() & present) if (p := folder / name).is_file()])
    for name, digest in hashes.items():
        if name == README and found.get(name) not in ("", digest):
            section.fact(README, "was written on since the export" if name in found else "was removed")
            continue
        section.compare(name, digest, found.get(name, ""))
    for name in sorted(present - hashes.keys()):
        section.check(name, "not there", "a file that the export did not write")
