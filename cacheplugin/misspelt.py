"""Variables in the environment that look like misspelt variables of this program.

Imported only if the environment has a GOCACHE_ name that is not in the table of options.
"""

import difflib

from .options import BEGINNING, FLAGS, SECRET_VARIABLES, is_given

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

_SIMILAR = 0.8  # difflib's ratio: one wrong letter in five
# Words that people leave out or put in: GOCACHE_BUCKET, GOCACHE_S3_PREFIX, GOCACHE_AWS_REGION.
_FILLERS = {"S3", "AWS", "KEY", "GO", "CACHE"}
# Words of other programs of this kind.
_OTHER_WORDS = {
    "DIRECTORY": "GOCACHE_DIR",
    "DISK_DIR": "GOCACHE_DIR",
    "SECRET_KEY": "GOCACHE_S3_SECRET_ACCESS_KEY",
}


def warnings(
    names: "Iterable[str]", argv: "Sequence[str]", environ: "Mapping[str, str]"
) -> "list[str]":
    """One line about each of ``names`` that resembles a variable of this program.

    None about a name whose likely meaning is set as well, by its variable or its flag: then the
    name belongs to the user's scripts. ``argv`` must be valid: options.load accepts it.
    """
    lines = []
    for name in sorted(names):
        meant = _meant(name[len(BEGINNING) :].upper())
        flag = next((flag.name for flag in FLAGS if flag.variable == meant), None)
        is_set = is_given(flag, argv, environ) if flag else bool(environ.get(meant))
        if meant and not is_set:
            lines.append(f"the variable {name} has no effect; did you mean {meant}?")
    return lines


def _meant(word: str) -> str:
    """The variable that ``word``, a name without its beginning, resembles most; "" if none."""
    words = _words_of_variables()
    for spelling in (word, _core(word)):
        close = difflib.get_close_matches(spelling, words, 1, _SIMILAR)
        if close:
            return words[close[0]]
    return ""


def _words_of_variables() -> "dict[str, str]":
    """{a word: the variable it stands for}: its name, its flag's name, and both without fillers."""
    words = dict(_OTHER_WORDS)
    spelt = [(variable[len(BEGINNING) :], variable) for variable in SECRET_VARIABLES]
    for flag in FLAGS:
        if flag.variable:
            spelt.append((flag.variable[len(BEGINNING) :], flag.variable))
            spelt.append((flag.name.upper().replace("-", "_"), flag.variable))
    for word, variable in spelt:
        words.setdefault(word, variable)
    for word, variable in spelt:
        words.setdefault(_core(word), variable)
    words.pop("", None)
    return words


def _core(word: str) -> str:
    """A word without its fillers: S3_ENDPOINT_URL is ENDPOINT_URL."""
    return "_".join(part for part in word.split("_") if part not in _FILLERS)
