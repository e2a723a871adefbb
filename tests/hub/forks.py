"""Runs commands of ggufy in processes of their own that begin with everything imported: `python -m tests.hub.forks`.

A line of JSON asks for one: {args, cwd, env, out, err}; the answers are its process id, and its exit code when it
ended. What huggingface_hub reads when it is imported (HF_ENDPOINT, HF_HOME) is the same for all of them.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any


def preload() -> None:
    import gguf
    import huggingface_hub
    import jinja2
    from huggingface_hub import HfApi, ModelCard, file_download

    from ggufy import pipeline
    from ggufy.cli import pull, push

    del gguf, huggingface_hub, jinja2, HfApi, ModelCard, file_download, pipeline, pull, push


def child(wanted: dict[str, Any]) -> int:
    from ggufy import cli

    os.chdir(wanted["cwd"])
    os.environ.update(wanted["env"])
    for number, path in ((0, os.devnull), (1, wanted["out"]), (2, wanted["err"])):
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)
        os.dup2(handle, number)
    try:
        return cli._run(wanted["args"])
    finally:
        sys.stdout.flush()
        sys.stderr.flush()


def main() -> None:
    preload()
    for line in sys.stdin:
        wanted = json.loads(line)
        process = os.fork()
        if process == 0:
            code = 70
            try:
                code = child(wanted)
            finally:
                os._exit(code)
        print(process, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]), flush=True)


if __name__ == "__main__":
    main()
