"""Names of files and classes, which may be any bytes, made fit to be shown and stored."""

import re

#: What Markdown may take for more than a character. A bracket that no address follows, an
#: underscore inside a word and a backslash before a letter are themselves already.
_MARKUP = re.compile(r"\](?=[(\[:])|[`*~$]|\\(?=[!-/:-@\[-`{-~])|(?<![^\W_])_|_(?=_*(?:\W|$))")
_ENTITY = re.compile(r"&(?=#?\w+;)")


def legible(name: str) -> str:
    """A name with what is not UTF-8, or would drive a terminal, as backslash escapes."""
    text = name.encode("utf-8", "backslashreplace").decode()
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def in_markdown(text: str) -> str:
    """A text with names in it, so that Markdown shows it as it stands.

    Links, code, emphasis, formulas and tags are what a name could become.
    """
    plain = _ENTITY.sub("&amp;", legible(text)).replace("<", "&lt;")
    return _MARKUP.sub(r"\\\g<0>", plain)


def in_cell(text: str) -> str:
    """The same in a table of Markdown, where a bar would begin another cell."""
    return in_markdown(text).replace("|", "\\|")


def as_file_name(text: str) -> str:
    """A name of ours, such as a backbone's, as a part of a file's name."""
    return "".join(c if c.isalnum() or c in "._+-" else "_" for c in text)
