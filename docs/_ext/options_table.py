"""Directives that render the program's table of options: ``options-table``, ``variables-table``."""

from docutils import nodes
from docutils.parsers.rst import Directive
from docutils.statemachine import StringList

from cacheplugin.helptext import option_rows


class Table(Directive):
    """A list table made from rows of text in reStructuredText."""

    def table(self, widths: str, rows: list) -> list:
        """The nodes of a table; ``rows`` are lists of cells, the first row is the header."""
        lines = [".. list-table::", "   :header-rows: 1", f"   :widths: {widths}", ""]
        for row in rows:
            first, *others = row
            lines.append(f"   * - {first}")
            lines += [f"     - {cell}" for cell in others]
        container = nodes.container()
        self.state.nested_parse(StringList(lines, source="options"), self.content_offset, container)
        return container.children


class OptionsTable(Table):
    """``.. options-table:: [COMMAND ...]``: the options that only these commands take.

    Without an argument: the options that every command takes. With several commands there is a
    column that names the commands of each option.
    """

    optional_arguments = 1
    final_argument_whitespace = True

    def run(self) -> list:
        """The nodes of the table."""
        commands = self.arguments[0].split() if self.arguments else []
        if commands:
            chosen = [row for row in option_rows() if set(row.commands) & set(commands)]
        else:
            chosen = [row for row in option_rows() if not row.commands]
        of_several = len(commands) > 1
        rows = [["flag", "commands" if of_several else "variable", "value", "default", "meaning"]]
        for row in chosen:
            second = ", ".join(map(literal, row.commands)) if of_several else literal(row.variable)
            rows.append([literal(row.flag), second, escaped(row.format)])
            rows[-1] += [default_of(row), escaped(row.text)]
        return self.table("20 24 18 14 24", rows)


class VariablesTable(Table):
    """``.. variables-table::``: the variables of this program, and the flag of each."""

    def run(self) -> list:
        """The nodes of the table."""
        rows = [["variable", "flag", "default"]]
        rows += [
            [literal(row.variable), literal(row.flag), default_of(row)]
            for row in option_rows()
            if row.variable
        ]
        return self.table("40 30 30", rows)


def default_of(row) -> str:
    """The default of an option: a value as literal text, words as they are."""
    return escaped(row.default) if " " in row.default else literal(row.default)


def literal(text: str) -> str:
    """Text as a literal; nothing for no text."""
    return f"``{text}``" if text else ""


def escaped(text: str) -> str:
    """Text in which no character is markup, on one line."""
    return " ".join(text.split()).translate({ord(char): f"\\{char}" for char in "\\*`|_"})


def setup(app) -> dict:
    """Called by Sphinx."""
    app.add_directive("options-table", OptionsTable)
    app.add_directive("variables-table", VariablesTable)
    return {"version": "1", "parallel_read_safe": True}
