"""Write ggufy's table of pre-tokenizers from llama.cpp's converter. Needs `make vendor`, and Python alone.

    python vendor/pre_tokenizers.py [--check]

The converter tells a byte-level tokenizer by what it makes of one text: the SHA-256 of the ids, as Python writes a list.
The text, the hashes and the names are data in its source, `conversion/base.py`; nothing of it is run. With --check
nothing is written, and the exit code says whether the table is up to date.
"""

import argparse
import ast
import json
import sys
from pathlib import Path
from typing import Any

SOURCE = Path(__file__).parent / "llama.cpp" / "conversion" / "base.py"
TABLE = Path(__file__).parents[1] / "ggufy" / "export" / "vocabulary" / "pre_tokenizers.json"


def table(source: str) -> dict[str, Any]:
    """The text that is hashed, and the name of each hash; of two names for one the later, as in the converter."""
    function = next(
        node
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.FunctionDef) and node.name == "get_vocab_base_pre"
    )
    text, names = "", {}
    for node in ast.walk(function):
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "chktxt":
            text = ast.literal_eval(node.value)
    for node in function.body:
        if isinstance(node, ast.If) and isinstance(node.test, ast.Compare) and ast.unparse(node.test.left) == "chkhsh":
            known, named = node.test.comparators[0], node.body[0]
            assert isinstance(known, ast.Constant)
            assert isinstance(named, ast.Assign)
            names[known.value] = ast.literal_eval(named.value)
    return {"text": text, "names": dict(sorted(names.items()))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    made = json.dumps(table(SOURCE.read_text(encoding="utf-8")), indent=1) + "\n"
    if parser.parse_args().check:
        sys.exit(0 if TABLE.read_text(encoding="utf-8") == made else f"{TABLE.name} is not up to date")
    TABLE.write_text(made, encoding="utf-8")


if __name__ == "__main__":
    main()
