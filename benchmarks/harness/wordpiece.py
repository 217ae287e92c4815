"""BERT's uncased tokenizer, as far as English text needs it (Devlin et al., 2018; Schuster and Nakajima, 2012)."""

from __future__ import annotations

import re
import unicodedata
from pathlib import Path

#: A word of letters and digits, or one sign.
_PIECES = re.compile(r"[^\W_]+|[^\w\s]|_")
_LONGEST = 100


class WordPiece:
    """Words are taken apart into the longest pieces that the vocabulary has, from the left."""

    def __init__(self, vocabulary: Path) -> None:
        lines = vocabulary.read_text("utf-8").splitlines()
        self._ids = {token: index for index, token in enumerate(lines)}
        self._unknown, self._first, self._last = (self._ids[name] for name in ("[UNK]", "[CLS]", "[SEP]"))

    def ids(self, text: str, longest: int = 128) -> list[int]:
        """Ids of a text between [CLS] and [SEP], cut off at ``longest``."""
        plain = unicodedata.normalize("NFD", text.lower())
        plain = "".join(char for char in plain if unicodedata.category(char) != "Mn")
        pieces = [piece for word in _PIECES.findall(plain) for piece in self._word(word)]
        return [self._first, *pieces[: longest - 2], self._last]

    def _word(self, word: str) -> list[int]:
        found, start = [], 0
        while start < len(word):
            for end in range(min(len(word), start + _LONGEST), start, -1):
                piece = self._ids.get(word[start:end] if start == 0 else f"##{word[start:end]}")
                if piece is not None:
                    found.append(piece)
                    start = end
                    break
            else:
                return [self._unknown]
        return found
