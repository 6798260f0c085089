"""Words as the index keeps and looks for them, the same in every database."""

import re
import unicodedata
from typing import Final

MAX_WORDS: Final = 16
"""Of a question: each costs a look-up."""

_WORD = re.compile(r"[^\W_]+")


def words_of(text: str) -> list[str]:
    """Return the words of a text: letters and digits, without case and without marks on letters."""
    decomposed = unicodedata.normalize("NFKD", text)
    plain = "".join(char for char in decomposed if not unicodedata.combining(char))
    return _WORD.findall(plain.casefold())


def searched_words(text: str) -> list[str]:
    """Return the words of a question, the first MAX_WORDS of them."""
    return list(dict.fromkeys(words_of(text)))[:MAX_WORDS]
