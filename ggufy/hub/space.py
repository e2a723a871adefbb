"""`ggufy space`: a Gradio Space that talks as `ggufy chat` does, with a GGUF file that was pushed.

The Space holds ggufy's own modules for chatting, so that template, date and tokens are those of `ggufy chat`.
"""

from __future__ import annotations

import json
import logging
from importlib import metadata, resources
from pathlib import Path
from typing import Any

from ggufy.errors import HubError, RunError
from ggufy.hub import push
from ggufy.hub.client import access, session, upload
from ggufy.hub.client.upload import Target
from ggufy.hub.contents import bundle, facts, leaks, names, places, receipt
from ggufy.hub.pull import choose
from ggufy.recipe import recipe
from ggufy.runs.run import Run
from ggufy.system import digest

log = logging.getLogger("ggufy")

# The version that the app was tried with.
GRADIO = "6.31.0"
_MODULES = (
    *("errors.py", "installed.py"),
    *("chat/__init__.py", "chat/conversation.py", "chat/model.py", "chat/prompts.py", "chat/session.py"),
    "chat/threads.py",
    *("llamacpp/evaluate_gguf.py", "llamacpp/gguf_reader.py", "llamacpp/graph.py", "llamacpp/greedy.py"),
    *("llamacpp/library.py", "llamacpp/mixture.py"),
    "model/template.py",
    *("system/interrupts.py", "system/machine.py", "system/user_folders.py"),
)
_CONTEXT = 4096


def write(run: Run, repo: str, out: Path, *, quant: str | None = None, force: bool = False) -> list[Path]:
    """Write the Space to a folder, or what has changed of it; never over what somebody else has written.

    Raises RunError where the run has no GGUF file on the Hub yet.
    """
    files = contents(run, repo, quant)
    own = receipt.own(run, _noted(repo))
    for name, data in files.items():
        path = out / name
        if path.exists() and not force and path.read_bytes() != data and digest.of_file(path) not in own:
            raise HubError(
                f"{path.as_posix()} already exists, and is not the file that ggufy wrote",
                "choose another --out, or give --force to overwrite it",
            )
    receipt.begin(run, _noted(repo), bundle.from_sources(files, out))
    for name, data in files.items():
        path = out / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return [out / name for name in files]


def send(run: Run, out: Path, names_of_files: list[Path], repo: str, *, private: bool, force: bool) -> push.Pushed:
    """Upload a written Space."""
    target = Target(repo, "main", "space")
    files = bundle.from_sources({path.relative_to(out).as_posix(): path for path in names_of_files}, out)
    api = session.client()
    may = access.check(api, repo, None, "space")
    access.check_private(repo, may, private=private, kind="space")
    if not may.exists:
        push.create(api, target, private=private, space_sdk="gradio")
        # What the Hub puts into a new Space is nobody's work.
        force = True
    done = upload.upload(
        api,
        target,
        files,
        "ggufy space",
        own=lambda: receipt.own(run, _noted(repo)),
        before=lambda: receipt.begin(run, _noted(repo), files),
        force=force,
    )
    receipt.finish(run, _noted(repo), files, push.receipt_of(target, None, done))
    model = json.loads((out / "model.json").read_text(encoding="utf-8"))["repo"]
    if session.ask(f"look at {model}", lambda: api.repo_info(model), name=model).private:
        log.warning(
            "%s is private, so the Space needs a token that may read it, as the secret HF_TOKEN in %s",
            model,
            session.page(repo, "space", "/settings"),
        )
    return push.Pushed(target, done.commit, session.page(repo, "space"), files, done.new)


def _noted(repo: str) -> str:
    """The name of a Space in hub.json."""
    return f"spaces/{repo}@main"


def contents(run: Run, repo: str, quant: str | None) -> dict[str, bytes]:
    """The files of a Space, by name."""
    leaks.look_in_names(repo)
    names.check_repository(repo)
    frozen = places.without_places(run.frozen)
    model = _model(run, quant)
    wanted = recipe.from_values(run.frozen["recipe"])
    known = facts.llama(str(frozen["base"]["name"]))
    about = {
        **model,
        "context": _CONTEXT,
        "title": repo.partition("/")[2],
        "description": f"{model['file']} of {model['repo']}, made with ggufy{'. Built with Llama.' if known else ''}",
        "system": wanted.space.system,
        "examples": list(wanted.hub.examples),
        "task": wanted.space.task.model_dump(mode="json") if wanted.space.task else None,
    }
    header = [
        f"title: {about['title']}",
        "sdk: gradio",
        f"sdk_version: {GRADIO}",
        "app_file: app.py",
        *([f"license: {known[0]}"] if known else []),
        f"models:\n- {model['repo']}",
    ]
    text = f"Talks with `{model['file']}` of [{model['repo']}]({session.page(model['repo'])}) on a CPU.\n"
    package = resources.files("ggufy")
    return {
        "README.md": "\n".join(["---", *header, "---", "", f"# {about['title']}", "", text]).encode(),
        "app.py": package.joinpath("hub/app.py.txt").read_bytes(),
        "model.json": bundle.as_json(about),
        "requirements.txt": _requirements().encode(),
        # llama.cpp is compiled when the Space is built.
        "packages.txt": b"build-essential\ncmake\n",
        "ggufy/__init__.py": b'"""The part of ggufy that chats."""\n',
        **{f"ggufy/{name}": package.joinpath(name).read_bytes() for name in _MODULES},
    }


def _requirements() -> str:
    pinned = [f"{name}=={metadata.version(name)}" for name in ("llama-cpp-python", "jinja2")]
    return "\n".join([*pinned, ""])


def _model(run: Run, quant: str | None) -> dict[str, Any]:
    """The GGUF file of the last push that had one."""
    pushes = {name: sent for name, sent in receipt.read(run)["pushes"].items() if not name.startswith("spaces/")}
    for sent in sorted(pushes.values(), key=lambda sent: sent["finished"] or "", reverse=True):
        # Of a model in several files a Space would have to know them all.
        models = {p: f["size"] for p, f in sent["files"].items() if p.endswith(".gguf") and "/" not in p}
        fitting = {p: size for p, size in models.items() if not p.endswith(("-adapter.gguf", "-imatrix.gguf"))}
        if chosen := choose(fitting, quant):
            held = sent["files"][chosen]
            return {"repo": sent["repo"], "file": chosen, "commit": sent["commit"], "sha256": held["sha256"]}
    known = next((sent["repo"] for sent in pushes.values()), "user/name")
    first = f"`ggufy push {run.name} --repo {known}`"
    if not _exported(run, quant):
        first = f"`ggufy export {run.name}{f' --quant {quant}' if quant else ''}`, then {first}"
    else:
        first += " first"
    raise RunError(
        f"{run.path.as_posix()} has no GGUF file{f' in {quant}' if quant else ''} on the Hub yet, which a Space needs",
        first,
    )


def _exported(run: Run, quant: str | None) -> bool:
    """Whether there is something to push."""
    stamps = [stamp for output in run.stamped("export/") if (stamp := run.stamp(output)) and bundle.kind_of(stamp)]
    return any(stamp["output"].endswith(".gguf") and quant in (None, stamp["inputs"].get("quant")) for stamp in stamps)
