"""What Doxygen is to read for the header named on the command line.

The header's comments are for people with an editor: parameters are "name: text", errors "Errors: ...", and the rules for all
functions are the comment at its top. Here these become the commands that Doxygen has for them; not a word is changed.
"""

import pathlib
import re
import sys

path = pathlib.Path(sys.argv[1])
text = path.read_text(encoding="utf-8")

# The top is the page of the file. Its lists and indented tables are Markdown already.
text = text.replace(f"/*\n * {path.name} - ", f"/** @file {path.name}\n * ", 1)


def function(match):
    """A function's comment with its declaration. Parameters stand in paragraphs that begin with one; Doxygen knows their names."""
    comment, declaration = match.groups()
    item = r"(?m)^ \* (\w+(?:, \w+)*): +"

    def command(found):
        return " * @par Errors\n * " if found[1] == "Errors" else f" * @param {found[1].replace(' ', '')} "

    paragraphs = comment.split("\n *\n")
    paragraphs = [re.sub(item, command, p) if re.match(item, p) else p for p in paragraphs]
    return "\n *\n".join(paragraphs) + declaration


# A comment, and a declaration with parentheses after it. Inline functions have no such lines in their comments.
comment = r"(/\*\*\n(?: \*(?!/).*\n)+ \*/\n)"
text = re.sub(comment + r"((?!typedef|#)[\w ]+[ *]\w+\([^)]*\);\n)", function, text)

# Markdown would take an underscore at a word's edge (LAVA_ERR_) for emphasis. Indented lines are code.
prose = r"(?m)^ *\* (?! {4}).*_.*$"
text = re.sub(prose, lambda line: re.sub(r"\b_(?=\w)|_(?=\W)", r"\\_", line[0]), text)
sys.stdout.write(text)
