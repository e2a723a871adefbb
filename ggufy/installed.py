"""How this ggufy was installed, and so the command that installs more of it.

The name `ggufy` on the public index is a stranger's. What is installed is the distribution `ggufy-tune`, from where
this one came (direct_url.json of PEP 610): an editable checkout, a wheel, a repository; else from the index.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import sys
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

DISTRIBUTION = "ggufy-tune"
_ROOT = Path(__file__).parents[1]


def command(extra: str = "", *, options: str = "") -> str:
    """The command that installs ggufy as it is here, with an extra. `options` are pip's, such as `--upgrade`."""
    return _install(f"{_editable()}{_quoted(_spec(extra))}", options)


def command_for(*packages: str, options: str = "") -> str:
    """The command that installs other packages beside ggufy."""
    named = " ".join(_quoted(package) for package in packages)
    tool = _tool()
    if tool == "pipx":
        return f"pipx inject {DISTRIBUTION} {named}"
    if tool == "uv tool":
        beside = " ".join(f"--with {_quoted(package)}" for package in packages)
        return f"uv tool install {beside} {_editable()}{_quoted(_spec(''))}"
    return _install(named, options)


def removal(*packages: str) -> str:
    """The command that removes packages from this environment."""
    named = " ".join(_quoted(package) for package in packages)
    if _tool() == "pipx":
        return f"pipx uninject {DISTRIBUTION} {named}"
    return f"{_program('uninstall')} {named}"


def _install(what: str, options: str) -> str:
    tool = _tool()
    if tool in ("pipx", "uv tool"):
        return f"{tool} install --force {what}"
    if tool == "uv":
        options = options.replace("--force-reinstall", "--reinstall").replace("--no-cache-dir", "--no-cache")
    return " ".join(part for part in (_program("install"), options, what) if part)


def _record(name: str) -> str:
    """A file of the distribution's metadata; empty where it is not installed, or has none."""
    from importlib import metadata

    try:
        return metadata.distribution(DISTRIBUTION).read_text(name) or ""
    except metadata.PackageNotFoundError:
        return ""


def _tool() -> str:
    """What it was installed with: pip, uv, pipx, or uv tool."""
    prefix = Path(sys.prefix)
    if (prefix / "pipx_metadata.json").is_file():
        return "pipx"
    if (prefix / "uv-receipt.toml").is_file():
        return "uv tool"
    return "uv" if _record("INSTALLER").strip() == "uv" else "pip"


def _program(verb: str) -> str:
    """pip's or uv's command, as it is called for this environment and no other."""
    python = _quoted(sys.executable)
    if _tool().startswith("uv"):
        active = os.environ.get("VIRTUAL_ENV")
        return f"uv pip {verb}" if active and Path(active) == Path(sys.prefix) else f"uv pip {verb} --python {python}"
    found = shutil.which("pip")
    return f"pip {verb}" if found and Path(found).parent == Path(sys.executable).parent else f"{python} -m pip {verb}"


def _source() -> dict[str, Any]:
    try:
        found = json.loads(_record("direct_url.json") or "{}")
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _checkout() -> Path | None:
    """The folder of an editable installation, or that ggufy is run from without one."""
    source = _source()
    if (source.get("dir_info") or {}).get("editable"):
        return _path(str(source.get("url")))
    here = not _record("METADATA") and (_ROOT / "pyproject.toml").is_file()
    return _ROOT if here else None


def _editable() -> str:
    return "-e " if _checkout() else ""


def _spec(extra: str) -> str:
    """What is given to an installer."""
    named = f"[{extra}]" if extra else ""
    if checkout := _checkout():
        return f"{checkout.as_posix()}{named}"
    source = _source()
    url = str(source.get("url") or "")
    if vcs := source.get("vcs_info"):
        wanted = vcs.get("requested_revision") or vcs.get("commit_id")
        url = f"{vcs.get('vcs')}+{url}{f'@{wanted}' if wanted else ''}"
    elif url.startswith("file:") and not _path(url).exists():
        url = ""
    return f"{DISTRIBUTION}{named} @ {url}" if url else f"{DISTRIBUTION}{named}"


def _path(url: str) -> Path:
    return Path(unquote(urlsplit(url).path))


def _quoted(text: str) -> str:
    return shlex.quote(text)


def rivals() -> list[str]:
    """Other distributions here that have put their own program in the place of the command `ggufy`."""
    from importlib import metadata

    found = []
    for other in metadata.distributions():
        name = str(other.metadata["Name"])
        if name.lower().replace("_", "-") == DISTRIBUTION:
            continue
        # The lists of files are long: read as texts, and only where it may be in one.
        lines = [line for line in (other.read_text("RECORD") or "").splitlines() if "/ggufy" in line]
        if any(line.partition(",")[0].endswith(("/ggufy", "/ggufy.exe")) for line in lines):
            found.append(f"{name} {other.version}")
    return list(dict.fromkeys(found))
