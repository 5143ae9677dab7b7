"""The simulation of a large table, on a small one: what it prints is measured on a table that is read as any."""

import json
import re

from scripts import simulate_corpus_table as simulation


def test_a_table_of_links_is_opened_and_read(tmp_path, capsys):
    simulation.main([f"--folder={tmp_path}", "--rows=2000", "--shard_rows=8", "--seq_len=512", "--read=64", "--one"])
    text = capsys.readouterr().out
    shards = int(re.search(r"(\d+) shards of 8 rows", text)[1])
    measured = json.loads(text[text.index("{") :])
    assert measured["table_rows"] == 8 * shards and 1900 < 8 * shards < 2100
    assert measured["rows_s"] > 1 and measured["open_s"] < 60 and measured["cpu_ms_row"] < 1000
    assert list(tmp_path.iterdir()) == []
