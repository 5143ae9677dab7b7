"""The outline of a page as its reader sees it, and whether it is well-formed."""

from html.parser import HTMLParser


class Outline(HTMLParser):
    """Rows of tables as text, headings, and a check that every tag is closed."""

    VOID = ("meta", "rect", "line", "path", "input")

    def __init__(self, page: str):
        super().__init__()
        self.open, self.rows, self.headings, self.attributes = [], [], [], []
        self.feed(page)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.attributes += attrs
        if tag not in self.VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        if tag in ("h1", "h2", "h3"):
            self.headings.append("")

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        if "td" in self.open or "th" in self.open:
            self.rows[-1][-1] += data
        elif self.open and self.open[-1] in ("h1", "h2", "h3"):
            self.headings[-1] += data
