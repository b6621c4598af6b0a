"""The error that ends a run because of its input: exit code 2, one message, no traceback."""


class ConfigError(Exception):
    """Bad input by the user. The message says where, what was found, what was expected, and what to do."""


def did_you_mean(word: str, options, label: str = "Did you mean") -> str:
    """A sentence that names the nearest of `options`, or an empty string when nothing is near."""
    import difflib

    near = difflib.get_close_matches(word, list(options), n=1, cutoff=0.5)
    return f" {label} '{near[0]}'?" if near else ""
