"""Guess the language of a text by its script and, for Latin script, by the commonest words.

A guess that can be explained, and none at all where there is little to go by: a short text, a list of names, code.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter

# Words that are frequent in one of these languages; what several share counts for each.
_WORDS = {
    "en": "the of and to in is you that it he was for on are with as his they be at this have from or by not but what "
    "all were we when your can there an which do how if will about them then would my than who its did get has had",
    "de": "der die das und ist nicht ich du er sie es wir ihr mit dem den ein eine einen auf für von zu im auch sich "
    "des wie aus bei nach werden wird sind war haben hat noch nur oder aber wenn dann man kann über durch",
    "fr": "le la les des et est une un dans que qui pour pas vous nous je il elle ce cette au aux sur avec plus son "
    "sont par mais ou où du ne se leur être fait comme tout très sans",
    "es": "el la los las de que y en un una es por con no para su se lo como más pero sus le ya o este sí porque esta "
    "entre cuando muy sin sobre también me hasta hay donde quien desde todo nos del al",
    "it": "il lo la gli le di che e è un una in per non con si da come del della sono ma anche più nel alla ha questo "
    "io se dei mi ci loro essere molto perché tutto",
    "pt": "o a os as de que e em um uma é por com não para se na no como mais mas do da dos das ao foi seu sua ele ela "
    "você são quando muito também já está eu isso",
    "nl": "de het een en van ik te dat die in is niet zijn op aan met als voor er maar om hem dan zou of wat mijn men "
    "dit zo door over ze zich bij ook tot je naar deze",
    "sv": "och att det som en på är av för med den till inte har de ett om han men var jag sig från vi så kan när hon "
    "eller hade här också",
    "pl": "i w nie na się z że to jest do jak co po za ale o tak od ten przez dla czy być tym są już tylko był",
    "tr": "bir ve bu da de için çok ne o ile gibi daha var kadar ama olarak sonra olan ben sen değil en ki her",
    "cs": "a se v na je že s z do to i o ale jako za k by si po jsem jsou byl ve jak tak co když nebo",
    "id": "yang dan di itu dengan untuk tidak ini dari dalam akan pada juga saya ke karena ada bisa oleh atau",
}
WORDS = {language: frozenset(words.split()) for language, words in _WORDS.items()}

# Of scripts that belong to few languages: the one that is meant where nothing else is known.
_SCRIPTS = {
    "HIRAGANA": "ja",
    "KATAKANA": "ja",
    "HANGUL": "ko",
    "CJK": "zh",
    "CYRILLIC": "ru",
    "ARABIC": "ar",
    "HEBREW": "he",
    "GREEK": "el",
    "THAI": "th",
    "DEVANAGARI": "hi",
    "BENGALI": "bn",
    "TAMIL": "ta",
    "GEORGIAN": "ka",
    "ARMENIAN": "hy",
}
_FEWEST_WORDS = 5
_FEWEST_LETTERS = 4
_MAIN = 0.5
"""The share of letters from which on a script is a text's own."""


def of(text: str) -> str | None:
    """The language, as "en"; None where the text does not tell."""
    script = _script(text)
    if script is None:
        return None
    if script != "LATIN":
        return _SCRIPTS.get(script)
    words = re.findall(r"[^\W\d_]+", text.lower())
    if len(words) < _FEWEST_WORDS:
        return None
    counts = {language: sum(word in known for word in words) for language, known in WORDS.items()}
    (first, most), (_, next_most) = Counter(counts).most_common(2)
    # One word in ten, and clearly more than in the language that is second.
    return first if most >= max(2, len(words) / 10) and most >= 1.2 * next_most else None


def can_be(text: str, language: str) -> bool:
    """Whether a text may be in a language, as far as this can tell: no if it is clearly in another one."""
    found = of(text)
    return found is None or found == language or not (language in WORDS or language in _SCRIPTS.values())


def _script(text: str) -> str | None:
    """The script of most letters; Japanese with its Chinese characters is Japanese."""
    counts: Counter[str] = Counter()
    for letter in text:
        if letter.isalpha():
            counts[unicodedata.name(letter, "?").split()[0].removesuffix("-COMPATIBILITY")] += 1
    total = sum(counts.values())
    if total < _FEWEST_LETTERS:
        return None
    kana = counts["HIRAGANA"] + counts["KATAKANA"]
    if kana and kana + counts["CJK"] >= _MAIN * total:
        return "HIRAGANA"
    script, most = counts.most_common(1)[0]
    return script if most >= _MAIN * total else None
