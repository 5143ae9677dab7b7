"""An endpoint on this machine, a small quiz, and the evaluate command that asks the one the other."""

import json

import pytest

from mmed_jax import evaluate
from mmed_jax.data.records.schema import write_records
from tests.support.hf_folders import hf_folder
from tests.support.openai_server import OpenAIServer

KEY = "sk-local-0123456789abcdef"
LANGUAGES = ("en", "fr", "ko")
DRUGS = {"A": "aspirin", "B": "warfarin", "C": "heparin", "D": "clopidogrel"}


def question(n, language, **more):
    return {
        "id": f"{language}{n}",
        "language": language,
        "question": f"Question {n}?",
        "options": DRUGS,
        "answer_idx": "ABCD"[n % 4],
        "rationale": f"Because of reason {n}.",
        **more,
    }


@pytest.fixture
def quiz(tmp_path):
    write_records(tmp_path / "quiz.jsonl", [question(n, lang) for lang in LANGUAGES for n in range(4)])
    write_records(tmp_path / "shown.jsonl", [question(n, lang) for lang in LANGUAGES for n in range(20, 24)])
    return tmp_path / "quiz.jsonl"


def always_b(body):
    return "It thins the blood.\n\nAnswer: B"


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    for name in ("OPENAI_BASE_URL", "AZURE_OPENAI_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)
    with OpenAIServer(always_b, key=KEY) as s:
        s.bodies = []
        s.model = lambda body: s.bodies.append(body) or always_b(body)
        yield s


@pytest.fixture
def ask(server, quiz, tmp_path):
    """Runs the command against the server."""

    def go(*flags, output="out", url=None, data=quiz):
        evaluate.main(
            [
                "--api_model=m",
                f"--base_url={url or server.base_url}",
                f"--ledger={tmp_path / 'ledger.sqlite'}",
                "--price=1,10",
                f"--output={tmp_path / output}",
                *([f"--data={data}"] if data else []),
                *flags,
            ]
        )
        return results(tmp_path, output)

    return go


def results(tmp_path, output="out"):
    return json.loads((tmp_path / output / "results.json").read_text())


def predictions(tmp_path, output="out"):
    return [json.loads(x) for x in (tmp_path / output / "predictions.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return hf_folder(tmp_path_factory.mktemp("api") / "model", max_position_embeddings=8192)
