"""Names of files and classes, which may be any bytes, made fit to be shown and stored."""


def legible(name: str) -> str:
    """A name with what is not UTF-8, or would drive a terminal, as backslash escapes."""
    text = name.encode("utf-8", "backslashreplace").decode()
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def as_file_name(text: str) -> str:
    """A name of ours, such as a backbone's, as a part of a file's name."""
    return "".join(c if c.isalnum() or c in "._+-" else "_" for c in text)
