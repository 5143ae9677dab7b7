"""What tokens cost: the table in prices.json (one file, with its date), or a price that the user gives."""

import json
import os
import re
from dataclasses import dataclass
from pathlib import Path

from mmed_jax.common.errors import UserError, nearest
from mmed_jax.common.input_files import open_file
from mmed_jax.common.jsonl import loads

TABLE = Path(__file__).parent / "prices.json"
_DATED = re.compile(r"-(\d{4}-\d{2}-\d{2}|\d{4}|latest)$")


@dataclass(frozen=True)
class Price:
    """US dollars per million tokens; `date` says of when, `batch` what a batch costs of it."""

    input: float
    cached: float
    output: float
    date: str
    batch: float = 0.5

    def cost(self, prompt: float, completion: float, cached: float = 0, *, batch: bool = False) -> float:
        """Dollars for so many tokens; `cached` of the prompt's tokens were read from the endpoint's cache."""
        cached = cached if 0 < cached <= prompt else 0  # more than there are is no count
        million = (prompt - cached) * self.input + cached * self.cached + completion * self.output
        return million / 1e6 * (self.batch if batch else 1.0)


def price_of(model: str, table: str | os.PathLike | None = None, given: str | None = None) -> Price | None:
    """The price of a model: `given` ("0.15,0.60", in and out), else from the table; None when it is not there.

    Raises UserError for a price or a table that cannot be read.
    """
    if given is not None:
        try:
            paid, made = (float(x) for x in given.split(","))
        except ValueError:
            paid = made = -1.0
        if not (0 <= paid < 1e6 and 0 <= made < 1e6):
            raise UserError(f"--price={given}: two numbers, US dollars per million tokens in and out, as 0.15,0.60")
        return Price(paid, paid, made, "as given", 1.0)
    path = Path(table) if table else TABLE
    try:
        with open_file(path, f"--prices={path}") as f:
            found = loads(f.read(), dict)
        date, factor = str(found["date"]), float(found.get("batch_factor", 1.0))
        models = {name: tuple(float(x) for x in three) for name, three in found["models"].items()}
        if any(len(three) != 3 or not all(0 <= x < 1e6 for x in three) for three in models.values()):
            raise ValueError("three numbers a model are needed: input, cached input, output")
        if not 0 < factor <= 1:
            raise ValueError(f"batch_factor {factor}: must be above 0 and at most 1")
    except OSError as e:
        raise UserError(f"--prices={path}: cannot be read ({e.strerror or e})") from None
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as e:
        raise UserError(f"--prices={path}: not a price table like mmed_jax/llm_api/prices.json ({e})") from None
    three = models.get(model) or models.get(_DATED.sub("", model))
    if three is None:
        return None
    paid, cached, made = three
    return Price(paid, cached, made, date, factor)


def no_price(model: str, flag: str) -> UserError:
    """The error for a limit in money where no price is known."""
    names = json.loads(TABLE.read_text(encoding="utf-8"))["models"]
    hint = nearest(model, names).replace("; valid:", "; known:")
    return UserError(f"{flag}: no price is known for model '{model}'{hint}; pass --price=IN,OUT (0,0 for a local one)")


def no_room(flag: str) -> UserError:
    """The error for a limit in money where an answer may be of any length."""
    return UserError(
        f"{flag}: an answer without a limit may cost anything; give --max_tokens=N (max_completion_tokens in --params)"
    )
