"""How many bits a camera filled: 10- or 12-bit data in 16-bit words.

A file of 16-bit words does not say so. The largest value and the lowest bits do, over all pictures
that a model is trained on: no picture of a 12-bit camera goes beyond 4095, and where the camera
shifts its values to the top, their lowest four bits are never set.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from operator import or_
from typing import NamedTuple

import numpy as np

WORD = 16
KNOWN = (8, 10, 12, 14, WORD)  # depths of cameras in bits
FULL = 2**WORD - 1
_DARKER = 2  # bits that a picture may lack of the darkest one of the training, and one more may not


class Words(NamedTuple):
    """What the 16-bit values of one picture show."""

    largest: int
    used: int  # every bit that any value has set


@dataclass(frozen=True)
class Depth:
    """The depth of the pictures of a training, which says what value is white."""

    bits: int = WORD  # bits that the data fill
    shift: int = 0  # bits below them that are never set; 0 where the data fill the lowest bits
    # Largest value of the darkest training picture; 0 where a depth was stated, and any picture may
    # be as dark as it likes.
    darkest: int = 0

    @property
    def white(self) -> int:
        """Value in a 16-bit word that becomes 255."""
        return FULL if self.shift else (1 << self.bits) - 1

    def text(self) -> str:
        """Name it, as in a sentence."""
        shifted = self.shift and self != BYTES
        return f"{self.bits}-bit data" + (" in the upper bits" if shifted else "")

    def sentence(self) -> str:
        """Say what pictures are taken for."""
        why = "as bits= says"
        if self.darkest:
            why = "by their largest value and lowest bits; set bits= if that is wrong"
        joined = "of" if self.shift else "in"
        return (
            f"The pictures hold {self.text()} {joined} 16-bit words, {self.white} is white ({why})."
        )

    def refusal(self, words: Words) -> str | None:
        """Say in one sentence why a picture is of another depth; None where it is not."""
        if words.largest > self.white:
            return (
                f"The picture holds {depth_of([words]).text()} (largest value {words.largest}), "
                f"and the model knows {self.text()} of 0 to {self.white}: send pictures of that "
                f"depth, or train with bits={_least(words.largest)}."
            )
        fills_low_bits = bool(words.used & (2**self.shift - 1)) or not self.shift
        if self.darkest and fills_low_bits and _lacks(words, self.darkest):
            theirs = _least(words.largest)
            which, settles = f" whose darkest picture reaches {self.darkest}", self.bits
            if self == BYTES:  # files of 8 bits, which were not looked at
                which, settles = "", theirs
            return (
                f"The picture holds {theirs}-bit data (largest value {words.largest} of "
                f"{self.white}), and the model knows {self.text()}{which}: send pictures of that "
                f"depth, or train with bits={settles} if that is what such values are."
            )
        return None


# Files of 8 bits fill the upper half of a word, and are as white as it can be.
BYTES = Depth(8, 8, FULL)


def words_of(values: np.ndarray) -> Words:
    """Look at the values of one picture."""
    flat = values.reshape(-1)
    return Words(int(flat.max()), int(np.bitwise_or.reduce(flat)))


def depth_of(words: Sequence[Words], stated: int | None = None) -> Depth:
    """Recognise the depth of pictures."""
    if stated is not None:
        above = [w for w in words if w.largest >= 2**stated and not w.used % 2 ** (WORD - stated)]
        shifted = stated < WORD and 2 * len(above) > len(words)
        return Depth(stated, WORD - stated if shifted else 0)
    if not words:
        return BYTES
    used = reduce(or_, (w.used for w in words))
    darkest = min(w.largest for w in words)
    bits = _least(used)
    if bits < WORD:
        return Depth(bits, 0, darkest)
    bits = next(b for b in KNOWN if not used % 2 ** (WORD - b))
    return Depth(bits, WORD - bits, darkest)


def _least(largest: int) -> int:
    """Give the fewest bits of a known depth that hold a value."""
    return next(b for b in KNOWN if largest < 2**b)


def _lacks(words: Words, darkest: int) -> bool:
    return words.largest.bit_length() <= darkest.bit_length() - _DARKER
