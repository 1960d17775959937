"""What an error of the YAML reader means to a person: a sentence and one action.

The one idea: a reader of YAML tells what it expected; a person wants to know which slip of the hand did it.
"""

from __future__ import annotations

# Words of PyYAML's message (or of its context) -> what is wrong, what to do. The first that fits is taken.
MEANINGS: tuple[tuple[str, str, str], ...] = (
    ("'\\t' that cannot start", "a tab indents this line", "indent with spaces, YAML takes no tabs"),
    ("that cannot start any token", "text cannot begin with this character", "put the text in quotes"),
    (
        "mapping values are not allowed",
        "a second `:` in the line, or a line indented too far",
        "align the line with the keys of its section, or put the text in quotes",
    ),
    (
        "could not find expected ':'",
        "a key without `: ` and a value",
        "write `key: value`, with a space after the colon",
    ),
    (
        "sequence entries are not allowed",
        "a list begins where none can",
        "begin the list in a line of its own, or write [a, b]",
    ),
    (
        "expected the node content",
        "a value is missing, or it begins with a character of YAML",
        "close every bracket, or put the text in quotes",
    ),
    ("but found '<scalar>'", "text stands after the end of the value", "put the whole value in quotes"),
    ("mapping keys are not allowed", "a `?` where none can be", "put the text in quotes"),
    (
        "while parsing a flow mapping",
        "a `{` is not closed, or a comma is missing",
        "write {key: value, key: value}",
    ),
    ("while parsing a flow sequence", "a `[` is not closed, or a comma is missing", "write [a, b]"),
    (
        "while scanning a quoted scalar",
        "a quote is not closed",
        "close the text with the quote that opened it",
    ),
    (
        "while scanning a double-quoted scalar",
        "a backslash in double quotes that means nothing",
        "use single quotes, or write \\\\ for a backslash",
    ),
    (
        "while parsing a block mapping",
        "this line does not line up with the keys above it",
        "align the keys of a section, two spaces deeper than the section",
    ),
    (
        "while parsing a block collection",
        "this line does not line up with the list above it",
        "align the items of the list",
    ),
    (
        "while scanning a block scalar",
        "text after `|` or `>` is not indented as it should be",
        "write the text in one line, in quotes",
    ),
    ("while scanning an anchor", "`&` begins a name of YAML", "put the text in quotes"),
    ("while scanning an alias", "`*` begins a name of YAML", "put the text in quotes"),
    ("while scanning a tag", "`!` begins a type of YAML", "put the text in quotes"),
    ("while parsing a node", "`!` begins a type of YAML", "put the text in quotes"),
    ("directive", "a `%` begins the line", "put the text in quotes"),
    ("YAML document", "a `%` begins the line", "put the text in quotes"),
    ("special characters are not allowed", "an invisible control character", "remove it"),
    ("expected '<document start>'", "this line belongs to no section", "align it with the keys above it"),
)


def is_left_open(problem: str, *, context: str) -> bool:
    """Whether the mistake is where the reader began (a bracket, a quote), and not where it gave up."""
    unclosed_bracket = "while parsing a flow" in context and "','" in problem
    return unclosed_bracket or "end of stream" in problem or "could not find expected ':'" in problem


def meaning(problem: str, *, context: str = "") -> tuple[str, str]:
    """Message and hint for an error of PyYAML."""
    said = f"{problem} {context}"
    for words, message, hint in MEANINGS:
        if words in said:
            return message, hint
    return "this is not YAML", "write `key: value` lines, and indent the keys of a section with two spaces"
