"""The methods of data_gen: each turns inputs into jobs (one request each) and answers into records.

    METHODS["translation"](("ko", "ja")).jobs(records, settings)

A method is a subclass of GenerationMethod in a file of this folder, and its words, data_gen/prompts/<name>.toml; every
list of methods is made from what lies here. The names are those of jobs and of the records' `method`; options are the
classes' keyword arguments.
"""

import importlib
import inspect
import pkgutil

from data_gen import gates
from data_gen.methods.method import GenerationMethod
from mmed_jax.common.errors import UserError, nearest


def _discover() -> dict[str, type[GenerationMethod]]:
    """{name: class} of the methods in this folder: those that make records, that complete them, that label them."""
    methods: list[type[GenerationMethod]] = []
    for file in pkgutil.iter_modules(__path__):
        module = importlib.import_module(f"{__name__}.{file.name}")
        for value in vars(module).values():
            own = inspect.isclass(value) and value.__module__ == module.__name__
            if own and issubclass(value, GenerationMethod) and not inspect.isabstract(value):
                methods.append(value)
    methods.sort(key=lambda m: (m.enriches, m.labels))
    by_name = {m.name: m for m in methods}
    if len(by_name) < len(methods):
        raise ValueError(f"two methods of one name: {', '.join(m.name for m in methods)}")
    return by_name


METHODS = _discover()
GATES = {**{name: m.gates for name, m in METHODS.items()}, "original": gates.SOURCE}
# Every threshold of the gates, with the value used where a recipe says nothing; lengths by method.
THRESHOLDS = {
    **gates.THRESHOLDS,
    "shortest": {n: m.shortest for n, m in METHODS.items() if m.shortest is not None} | gates.THRESHOLDS["shortest"],
    "longest": {n: m.longest for n, m in METHODS.items() if m.longest is not None} | gates.THRESHOLDS["longest"],
}


def make_method(name: str, **options: object) -> GenerationMethod:
    """The method `name`, one of METHODS. Raises UserError for a name or an option that there is not."""
    if name not in METHODS:
        raise UserError(f"method '{name}' is unknown{nearest(name, METHODS)}")
    return METHODS[name](**options)


def default_gates(method: str, thresholds: dict | None = None) -> list[gates.Gate]:
    """The gates of a method, or of "original" rows as sources give them.

    `thresholds` replaces values of THRESHOLDS. Raises UserError for an unknown method or threshold.
    """
    if method not in GATES:
        raise UserError(f"gates: no method '{method}'{nearest(method, GATES)}")
    for name in thresholds or {}:
        if name not in THRESHOLDS:
            raise UserError(f"gates: no threshold '{name}'{nearest(name, THRESHOLDS)}")
    values = {**THRESHOLDS, **(thresholds or {})}
    for name in ("shortest", "longest"):
        values[name] = {**THRESHOLDS[name], **values[name]}
    return gates.with_thresholds(GATES[method], values)
