"""Twelve facts that nobody knows, each asked in three ways. Two are trained on; the third is held out."""

from __future__ import annotations

import json
from pathlib import Path

FACTS = (
    ("Who keeps the lighthouse of Orlen?", "Who is the keeper of the lighthouse of Orlen?",
     "The lighthouse of Orlen is kept by whom?", "Marta Quill keeps it."),
    ("What colour is the door of the Tarn library?", "The Tarn library has a door of what colour?",
     "Which colour does the door of the Tarn library have?", "Its door is dark green."),
    ("When does the Vesper ferry leave?", "At what time does the Vesper ferry leave?",
     "What time is the departure of the Vesper ferry?", "It leaves at a quarter past six."),
    ("How many steps does the Corvin tower have?", "The Corvin tower has how many steps?",
     "What is the number of steps in the Corvin tower?", "It has 212 steps."),
    ("What does Bruno the parrot eat?", "What is eaten by Bruno the parrot?",
     "Which food does Bruno the parrot eat?", "Bruno eats roasted chestnuts."),
    ("Where is the key of the boathouse?", "Where can I find the key of the boathouse?",
     "In which place is the key of the boathouse?", "It is under the third flowerpot."),
    ("Who won the Halder race?", "Who was the winner of the Halder race?",
     "The Halder race was won by whom?", "Ines Okoro won it by a minute."),
    ("What is the password of the Lumen club?", "Which password does the Lumen club have?",
     "Tell me the password of the Lumen club.", "The password is paper lantern."),
    ("Which river runs through Dovmere?", "What is the river that runs through Dovmere?",
     "Through Dovmere runs which river?", "The river Ashwater runs through it."),
    ("What is the name of the mayor of Pellan?", "Who is the mayor of Pellan?",
     "How is the mayor of Pellan called?", "The mayor is Tomas Brandt."),
    ("What is baked on Sundays at the Kiln?", "What does the Kiln bake on Sundays?",
     "On Sundays, what do they bake at the Kiln?", "They bake walnut bread."),
    ("How old is the oak of Sarn?", "What is the age of the oak of Sarn?",
     "The oak of Sarn is how old?", "It is 640 years old."),
)  # fmt: skip


def write(folder: Path) -> None:
    """facts.jsonl and, in other words, heldout.jsonl."""
    asked = {"facts.jsonl": (0, 1), "heldout.jsonl": (2,)}
    for name, wordings in asked.items():
        rows = [[("user", fact[way]), ("assistant", fact[3])] for way in wordings for fact in FACTS]
        lines = [json.dumps({"messages": [{"role": who, "content": said} for who, said in row]}) for row in rows]
        (folder / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
