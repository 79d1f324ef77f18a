"""Tables of text: alignment, widths and the characters that are drawn."""

from hpc_dasgd.console.tables import Column, table_lines

COLUMNS = [Column("rank"), Column("host", numeric=False), Column("loss")]


def test_numbers_are_aligned_on_the_right_and_text_on_the_left():
    rows = [["0", "a", "0.5"], ["11", "node-12", "12.25"]]
    assert table_lines(COLUMNS, rows) == [
        "rank  host      loss",
        "   0  a          0.5",
        "  11  node-12  12.25",
    ]


def test_a_column_is_as_wide_as_its_heading_or_its_longest_cell():
    assert table_lines([Column("a long heading"), Column("b")], [["1", "12345"]]) == [
        "a long heading      b",
        "             1  12345",
    ]


def test_lines_have_no_blanks_at_their_ends():
    lines = table_lines([Column("name", numeric=False), Column("note", numeric=False)], [["x", ""], ["y", "long note"]])
    assert lines == ["name  note", "x", "y     long note"]


def test_a_table_without_rows_has_its_headings_only():
    assert table_lines(COLUMNS, []) == ["rank  host  loss"]


def test_cells_are_not_interpreted_as_markup():
    assert table_lines([Column("text", numeric=False)], [["[bold]x[/bold] :smile: 1"]]) == [
        "text",
        "[bold]x[/bold] :smile: 1",
    ]


def test_long_lines_are_neither_wrapped_nor_cut_by_default():
    (heading, row) = table_lines([Column("text", numeric=False)], [["word " * 150 + "end"]])
    assert heading == "text" and row == "word " * 150 + "end"


def test_lines_are_cut_at_the_given_width():
    lines = table_lines([Column("text", numeric=False)], [["0123456789"]], width=6)
    assert lines == ["text", "012345"]
