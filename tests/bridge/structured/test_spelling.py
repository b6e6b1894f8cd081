"""Which printer a column gets: the ones that decoders take, and the cheap ones."""

from __future__ import annotations

import pytest

from bridge.structured.coder import Reader, Writer
from bridge.structured.context import TextModel
from bridge.structured.printers import DIGITS_MAX, Printer, PrinterKey, PrinterKind
from bridge.structured.spelling import printer_for
from bridge.structured.texts import ALPHABETS, code_text

K = PrinterKind


@pytest.mark.parametrize(
    ("tokens", "key"),
    [
        ([b"21.5", b"21.6", b"9.0"], (K.FIXED, 1, b"", b"", b"")),
        ([b"21.5", b"22", b"21.25"], (K.TRIMMED, 2, b"", b"", b"")),
        ([b"21.5", b"22.0", b"21.25"], (K.FLOATY, 2, b"", b"", b"")),
        ([b"007", b"012", b"110"], (K.PADDED, 3, b"", b"", b"")),
        ([b"-4", b"17"], (K.FIXED, 0, b"", b"", b"")),
        ([b"12 %", b"13 %"], (K.FIXED, 0, b"", b"", b" %")),
        ([b"2026-11-21T04:00:00Z", b"2026-11-21T04:00:10Z"], (K.STAMP, 0, b"T", b"", b"Z")),
        ([b"2026-11-21 04:00:00.5", b"2026-11-21 04:00:10.25"], (K.STAMP_TRIMMED, 2, b" ", b"", b"")),  # noqa: E501
        ([b"3T04:05:06", b"3T04:05:16"], (K.CLOCK, 2, b"T", b"", b"")),
    ],
)  # fmt: skip
def test_tokens_of_one_form_have_its_printer(tokens: list[bytes], key: PrinterKey) -> None:
    assert printer_for(tokens) == key


def test_no_printer_has_more_digits_than_a_decoder_takes() -> None:
    wide = b"0" * (DIGITS_MAX + 1) + b"7"
    key = printer_for([wide, wide[:-1] + b"8"])
    assert key is None or key[1] <= DIGITS_MAX
    assert key is None or Printer(*key).parse(wide) in (None, 7)


def test_words_have_no_printer() -> None:
    assert printer_for([b"on", b"off", b"on"]) is None


@pytest.mark.parametrize("alphabet", range(1, len(ALPHABETS)))
def test_a_text_with_members_where_its_reference_has_a_sign_comes_back(alphabet: int) -> None:
    reference, text = b"<0123456!789>", b"<98765432103>"
    for near, value in ((reference, text), (text, reference), (reference, b"<9876543!210>")):
        writer = Writer()
        code_text(writer, TextModel(), near, 64, value, alphabet)
        reader = Reader(writer.section(), [bytes(pool) for pool in writer.pools])
        assert code_text(reader, TextModel(), near, 64, b"", alphabet) == value
        reader.close()
