"""What tables of comparison.py are made of."""

import dataclasses

ACCURACY = "accuracy"
YOURS = "your runs"


@dataclasses.dataclass(frozen=True)
class Value:
    """A number of a table. value: share (0 to 1). count: items, None where unknown. size: items as published.

    interval: 95 %, or None. mark: "*" not over the published items, "~" no number of right answers gives this figure.
    """

    value: float
    count: int | None = None
    interval: tuple[float, float] | None = None
    size: int | None = None
    mark: str = ""


@dataclasses.dataclass
class Line:
    """A row: a run (group YOURS) or a published one."""

    group: str
    name: str
    values: dict[str, Value]
    average: Value | None
    notes: list[str] = dataclasses.field(default_factory=list)


@dataclasses.dataclass(frozen=True)
class Difference:
    """`other` minus `first` in one column ("average", "all" items together): shares of the `count` common items.

    only_first, only_other, p: McNemar's counts and exact two-sided p; None for averages of columns.
    """

    first: str
    other: str
    column: str
    count: int
    shares: tuple[float, float]
    difference: float
    interval: tuple[float, float]
    only_first: int | None = None
    only_other: int | None = None
    p: float | None = None


@dataclasses.dataclass
class Table:
    """Everything about one benchmark that was asked in one way. total: the name of the last column, "" for none."""

    board: str
    metric: str
    asked: str
    columns: list[str]
    total: str
    lines: list[Line] = dataclasses.field(default_factory=list)
    differences: list[Difference] = dataclasses.field(default_factory=list)
    notes: list[str] = dataclasses.field(default_factory=list)
