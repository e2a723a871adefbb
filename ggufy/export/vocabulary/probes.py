"""Texts that tell tokenizers apart: scripts, digits, contractions, white space, marks."""

from __future__ import annotations

import unicodedata
from collections.abc import Container, Iterable, Iterator

_DIGITS = (
    "0",
    "7 ",
    "12",
    "123",
    "1234",
    "12345",
    "123456",
    "1234567",
    "3.14159 1,000,000",
    "v1.2.3",
    "a1b22c333d4444",
    "٣٤٥ ४५६ １２３ ½²Ⅷ",
)
_WORDS = (
    "Hello",
    " Hello",
    "Hello, world! How are you?",
    "I'm sure they're here, you'll see; he'd say it's what we've got.",
    "I'M SURE THEY'RE HERE; WE'VE DON'T IT'S HE'LL 'tis O'Neil's rock'n'roll",
    "camelCaseWords snake_case_words CONSTANT_NAME HTMLParser iPhone",
    "https://example.org/a/b?c=d&e=%20f#g someone@example.org C:\\Users\\me",
    "...!!!???---***===___ (((a))) [[b]] {{c}} <<d>> \"\"e\"\" ''f'' ``g`` ~~h~~ $5 €6 @you #tag 50% a/b\\c|d^e+f",
)
_SPACES = (
    " a",
    "  a",
    "a  b   c    d     e",
    "a\tb\t\tc\t\t\td",
    "a\nb\n\nc\n\n\nd\n\n\n\ne",
    "a\r\nb\r\n\r\nc\rd",
    "  \n\n  indented\n    more\n\tand tab  ",
    "trailing   ",
    "trailing\n",
    "\n\nleading",
    " \n \t\n  x \n",
    "def f(x):\n    if x:\n        return x**2  # ok\n    return None\n",
    "a\u00a0b\u2003c\u3000d",
)
_SCRIPTS = (
    "naïve café Straße Žluťoučký kůň Łódź İstanbul ﬁ ǅ",
    "Привет, мир! ЁЖИК ёлка Здравствуйте",
    "Γειά σου Κόσμε ΑΒΓ",
    "مرحبا بالعالم، كيف حالك؟",
    "שלום עולם, מה שלומך?",
    "你好，世界。我想在apple工作1314151天～",
    "こんにちは世界、カタカナとひらがな。ｱｲｳ",
    "안녕하세요 세계 ㄱㄴㄷ",
    "नमस्ते दुनिया क्षत्रिय",
    "বাংলা ভাষা தமிழ் తెలుగు ಕನ್ನಡ മലയാളം",
    "ที่นี่ประเทศไทย ພາສາລາວ ភាសាខ្មែរ မြန်မာ",
    "ქართული Հայերեն አማርኛ",
    "🌻👩‍👩‍👧 ✅ 🇩🇪 👍🏽 ☃️ ∑∫√≈ ←→ ♠♣ 𝔘𝔫𝔦 𐐷",
    "e\u0301 a\u0308 o\u0302\u0323 \u200b\u200d\ufeffx",
)
TEXTS = (*_WORDS, *_DIGITS, *_SPACES, *_SCRIPTS)
_AROUND = ("{}", "a{}b", "a {} b", "{}{}", "\n{}\n\nHi there.{}", "{} x\n", "1{}2 {}")


_CLOSE = ("{}", "a{}b", "{}{}")


def with_marks(marks: Iterable[str], close: Container[str] = ()) -> Iterator[str]:
    """Texts in which each of these tokens stands; beside one of `close` no white space does."""
    for mark in marks:
        yield from (text.replace("{}", mark) for text in (_CLOSE if mark in close else _AROUND))


def composed(texts: Iterable[str]) -> list[str]:
    """The texts in Unicode's form NFC, which some tokenizers put all text into, and llama.cpp none."""
    return [unicodedata.normalize("NFC", text) for text in texts]
