"""The definition of kernels/native/ternary.c in torch, and the coder."""

from __future__ import annotations

import torch
from torch import Tensor

from .dictionary import DIGITS, ROOT, Dictionary


def words_of(digits: Tensor, words: Dictionary) -> tuple[Tensor, Tensor]:
    """Divide each row of digits into words of a dictionary, always taking the longest that matches.

    digits: (R, 2 n) uint8, each 0, 1 or 2. Returns the words' numbers in the dictionary, (N,)
      uint16, row by row, and where each row begins among them, (R + 1,) int64. All rows are coded
      at once, a pair of digits at a time.
    """
    rows, width = digits.shape
    pairs = digits[:, 0::2].long() * 3 + digits[:, 1::2].long()  # (R, n)
    word = torch.full((rows,), ROOT)
    ended = torch.full((rows, width // 2 + 1), -1)  # the word that ends before this pair
    for place in range(width // 2):
        # greedy: follow the dictionary while there is a longer word, else end this one
        symbol = pairs[:, place]
        longer = words.next[word, symbol]
        ends = longer < 0
        ended[:, place] = word.where(ends, -1)
        word = longer.where(~ends, words.next[ROOT, symbol])
    ended[:, -1] = word if width else -1
    # An entry of -1 means that no word ends there.
    complete = ended >= 0
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), complete.sum(1).cumsum(0)])
    return ended[complete].to(torch.uint16), offsets


def digits_of(codes: Tensor, words: Dictionary) -> Tensor:
    """Return the digits of words, one word after the other: the inverse of `words_of`.

    codes: (N,) uint16, the words' numbers in the dictionary.  -> (sum of the words' lengths,)
      uint8.
    """
    numbers = codes.long()
    # Digits behind the end of a word do not count.
    within = torch.arange(DIGITS) < words.lengths[numbers][:, None]
    return words.digits[numbers][within]


def ternary(x: Tensor, codes: Tensor, offsets: Tensor, levels: Tensor, words: Dictionary) -> Tensor:
    """Compute x W^T: y_r = sum_j w_rj x_j, w_rj = 0, min_r or max_r for the digits 0, 1, 2.

    x: (N, in), `in` is even; codes: (K,) uint16, numbers of words, which are runs of digits of W's
      R rows; offsets: (R + 1,) int64, where each row begins in `codes`; levels: (R, 2) bfloat16,
      min and max of each row.  -> (N, R).
    """
    rows = len(levels)
    digits = digits_of(codes, words).view(rows, x.shape[1]).long()
    # the value of each digit, for each row
    level = torch.cat([levels.new_zeros(rows, 1), levels], 1).float()
    return x @ level.gather(1, digits).T
