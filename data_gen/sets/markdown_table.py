"""Tables of the cards, in Markdown."""


def table(head: tuple[str, ...], rows: list[tuple]) -> str:
    """A Markdown table; numbers get thousands separators, bars in cells are escaped."""

    def cell(value: object) -> str:
        text = f"{value:,}" if isinstance(value, int) else str(value)
        return text.replace("|", "\\|").replace("\n", " ")

    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join(lines + ["| " + " | ".join(map(cell, row)) + " |" for row in rows])
