"""Agreement of two raters, and sheets of yes and no."""

import openpyxl
import pytest

from mmed_jax.evaluation.ratings.agreement import agreement
from mmed_jax.evaluation.ratings.explanations import Explanation
from mmed_jax.evaluation.ratings.sheets import YES_NO_CRITERIA, read_sheet, write_sheet
from tests.support.sheets import fill_in


def test_kappa():
    """Against the definition; 0.4 is the example of 50 grants (20 both yes, 15 both no, 5 and 10 apart)."""
    first = [True] * 20 + [True] * 5 + [False] * 10 + [False] * 15
    second = [True] * 20 + [False] * 5 + [True] * 10 + [False] * 15
    assert agreement(first, second) == (50, 0.7, pytest.approx(0.4))
    assert agreement(first, first) == (50, 1.0, 1.0)
    assert agreement([True, False], [False, True]).kappa == -1.0
    assert agreement([True] * 3, [True] * 3) == (3, 1.0, None) and agreement([], []) == (0, 0.0, None)
    with pytest.raises(ValueError):
        agreement([True], [])


@pytest.mark.parametrize("suffix", [".csv", ".xlsx"])
def test_a_sheet_of_yes_and_no(tmp_path, suffix):
    options = {"A": "x", "B": "y"}
    rows = [Explanation("r", "train", f"q{n}", "en", "Q?", options, "A", "", "=Because") for n in (1, 2)]
    path = tmp_path / f"s{suffix}"
    write_sheet(path, rows, seed=1, yes_no=True)
    if suffix == ".csv":
        head = path.read_text(encoding="utf-8-sig").partition("\n")[0].strip()
        assert head == f"code,in,question,options,right answer,explanation,{','.join(YES_NO_CRITERIA)},comment"
        fill_in(path, lambda ident, criterion: dict(zip(YES_NO_CRITERIA, ("yes", "No", "1")))[criterion])
    else:
        book = openpyxl.load_workbook(path)
        sheet = book["ratings"]
        assert [c.value for c in sheet[1]][6:] == [*YES_NO_CRITERIA, "comment"]
        assert str(sheet.data_validations.dataValidation[0].sqref) == "G2:I3"
        for row in (2, 3):
            for column, value in zip("GHI", (True, "no", 1)):
                sheet[f"{column}{row}"] = value
        book.save(path)
    expected = dict(zip(YES_NO_CRITERIA, (1.0, 0.0, 1.0)))
    assert read_sheet(path).scores == {("r", "train", f"q{n}"): expected for n in (1, 2)}
