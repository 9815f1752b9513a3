"""CSV files whose fields are apart by something else than commas, as spreadsheets write them where the comma is decimal.

Told by the header: it has semicolons or tabs, and no comma. The text is turned into CSV with commas before it is read: the
separator and the comma change places, and a comma between two digits becomes a decimal point. So readers know one form only.
The record of a dead letter is shown as it was read.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

SEPARATORS = (b";", b"\t")
# A quoted field within its line; what lies between two of them; a quote by itself.
_PARTS = re.compile(rb'"(?:[^"\n]|"")*+"|[^"]++|"')
_DECIMAL_COMMA = re.compile(rb"(?<=\d),(?=\d)")
_QUOTED_NUMBER = re.compile(rb'"\s*[-+]?\d+,\d+(?:[eE][-+]?\d+)?\s*"')


def separator_of(header: bytes) -> bytes:
    """What the fields of a file are apart by, from its header line."""
    if b"," in header:
        return b","
    return next((separator for separator in SEPARATORS if separator in header), b",")


def as_commas(blocks: Iterator[bytes]) -> Iterator[bytes]:
    """Blocks of whole lines as CSV with commas; those of a file that has commas pass as they are."""
    separator: bytes | None = None
    for block in blocks:
        if separator is None and (lines := block.lstrip(b"\r\n")):
            separator = separator_of(lines.partition(b"\n")[0])
        yield block if separator in (None, b",") else _with_commas(block, separator)


def has_decimal_commas(lines: list[bytes], separator: bytes) -> bool:
    """Whether numbers in these lines have a comma for the point."""
    number = re.compile(rb'(?:^|%s)"?\s*[-+]?\d+,\d+' % re.escape(separator))
    return separator != b"," and any(number.search(line) for line in lines)


def _with_commas(block: bytes, separator: bytes) -> bytes:
    places = bytes.maketrans(separator + b",", b"," + separator)
    if b'"' not in block:
        return _DECIMAL_COMMA.sub(b".", block).translate(places) if b"," in block else block.translate(places)
    return _PARTS.sub(lambda match: _part(match[0], places), block)


def _part(text: bytes, places: bytes) -> bytes:
    if not text.startswith(b'"'):
        return _DECIMAL_COMMA.sub(b".", text).translate(places)
    return text.replace(b",", b".") if _QUOTED_NUMBER.fullmatch(text) else text
