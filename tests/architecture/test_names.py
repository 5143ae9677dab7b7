"""Names of modules: one word for one thing, and where a word stands twice, the folders say of what."""

from collections import Counter, defaultdict

from tests.support.source_tree import modules

# Words that have stood for several things; they stand once at most.
ONCE = ("report", "prompts", "rationale", "base", "judge", "settings", "config", "answers")
# Base names given more than once, and why a reader is not misled: the folder says what it is about.
SHARED = {
    "batch": "data/batch.py: rows on their way to the step; llm_api/batch: the room of the Batch API",
    "config": "mmed_jax/config is the room of a run's config, model/config.py the model's",
    "convert": "commands: the command line; data/sources: what it calls",
    "corpus": "data_gen/corpus is the room; commands: the command line",
    "documents": "data: as rows that are trained on; evaluation/perplexity: as texts whose loss is measured",
    "flops": "planning/hlo: counted in a program; training: by formula",
    "languages": "mmed_jax/data/languages is the room; configs: the study of one language against all",
    "ledger": "llm_api/ledger is the room, ledger/ledger.py its main class; commands: the command line",
    "load": "hf: weights of a Hugging Face folder; inference: an engine from any folder",
    "mmedbench": "data/sources: its files as published; configs: the recipe that builds it",
    "merge": "the command averages whole models; hf: an adapter into its base",
    "prompts": "data_gen: the words of the methods; evaluation: how questions are asked",
    "push": "data_gen/commands: a set; hf: an export; both by common/hub_upload.py",
    "recipes": "config: recipes of training; data_gen/sets: recipes of sets",
    "select": "evaluation/benchmarks: which questions are asked; data_gen/sets: which rows go in",
    "tuning": "hf: how a model was tuned; configs: the study of the ways",
    "units": "gates: of measurement; corpus: of work",
    "sheets": "data/sources: spreadsheets that are published; evaluation/ratings: sheets to rate on",
}
# Of those words, the ones that still stand several times. The list only shrinks.
KNOWN: set[str] = set()


def homes(repo) -> dict[str, list[str]]:
    """Base name -> the folders that hold a module or a package of that name."""
    found = defaultdict(list)
    for name in modules(repo):
        folder, _, base = name.rpartition(".")
        if folder and base != "__main__":
            found[base].append(folder)
    return found


def test_a_base_name_stands_once_or_its_folders_say_which(repo):
    several = {base: sorted(folders) for base, folders in homes(repo).items() if len(folders) > 1}
    unexplained = {base: folders for base, folders in several.items() if base not in SHARED}
    assert unexplained == {}, f"rename, or say in SHARED how the folders tell them apart: {unexplained}"
    assert set(SHARED) - set(several) == set(), "SHARED lists names that stand once"


def test_words_that_meant_several_things_stand_once(repo):
    """Rooms aside: the folder of a room is the one that says which."""
    files = Counter(m.path.stem for m in modules(repo).values() if not m.is_package)
    assert {word for word in ONCE if files[word] > 1} == KNOWN


def test_test_files_have_names_of_their_own(repo):
    """Tests lie in no packages, so that two files of one name cannot be collected in one run."""
    names = Counter(p.name for p in (repo / "tests").rglob("test_*.py"))
    assert [name for name, count in names.items() if count > 1] == []
