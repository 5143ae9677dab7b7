"""The methods of data_gen: each turns inputs into jobs (one request each) and answers into records.

    METHODS["translation"](("ko", "ja")).jobs(records, settings)

The names are those of jobs and of the records' `method`; options are the classes' keyword arguments.
"""

from data_gen.methods.expand import Expand
from data_gen.methods.method import MethodBase
from data_gen.methods.qa import QA
from data_gen.methods.rationale import Rationale
from data_gen.methods.reanswer import Reanswer
from data_gen.methods.topics import Topics
from data_gen.methods.translate import Translate
from mmed_jax.common.errors import UserError, nearest

METHODS: dict[str, type[MethodBase]] = {m.name: m for m in (Expand, QA, Translate, Rationale, Topics, Reanswer)}


def make_method(name: str, **options: object) -> MethodBase:
    """The method `name` ("answer_expanding", "qa_generation", "translation", "rationale", "topics", "reanswer").

    Raises UserError for a name or an option that there is not.
    """
    if name not in METHODS:
        raise UserError(f"method '{name}' is unknown{nearest(name, METHODS)}")
    try:
        return METHODS[name](**options)
    except TypeError as e:
        raise UserError(f"method {name}: {str(e).partition(' ')[2]}") from None
