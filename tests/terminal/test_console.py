"""Tables show the text they are given."""

import io

from rich.table import Table

from dsv3_plugin.terminal.console import Console, styled


def test_cells_are_neither_markup_nor_commands():
    table = Table(box=None)
    table.add_column("[bold]heading[/bold]")
    table.add_row("run[exp1] [/a] :smile:")
    table.add_row("a\nall good\x1b[2K")
    table.add_row(styled("[name]\r"))
    file = io.StringIO()
    console = Console(file=file, width=60)
    console.print(table)
    console.line_of("run[/a]" + "x" * 100)
    shown = [line.strip() for line in file.getvalue().splitlines()]
    assert shown == [
        "[bold]heading[/bold]", "run[exp1] [/a] :smile:", r"a\nall good\x1b[2K", r"[name]\r",
        "run[/a]" + "x" * 100,
    ]  # fmt: skip


def test_no_width_hides_what_is_said(monkeypatch):
    monkeypatch.setenv("COLUMNS", "0")
    file = io.StringIO()
    Console(file=file).print("steps 1000")
    assert file.getvalue() == "steps 1000\n"
