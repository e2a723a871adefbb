"""Every hint to install something names our own distribution, from where this one came, with what installed it."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
NAME = "ggufy-tune"
PIP = f"{shlex.quote(sys.executable)} -m pip"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def record(site: Path, url: dict[str, Any] | None, *, installer: str = "pip", name: str = NAME) -> Path:
    """The metadata of an installed distribution, as installers write it."""
    folder = site / f"{name.replace('-', '_')}-0.1.0.dist-info"
    folder.mkdir(parents=True)
    (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 0.1.0\n", "utf-8")
    (folder / "INSTALLER").write_text(f"{installer}\n", "utf-8")
    (folder / "RECORD").write_text("", "utf-8")
    if url is not None:
        (folder / "direct_url.json").write_text(json.dumps(url), "utf-8")
    return folder


def said(site: Path, call: str, **env: str) -> str:
    """What ggufy says with that metadata first on its path."""
    kept = {key: value for key, value in os.environ.items() if key != "VIRTUAL_ENV"}
    kept |= {"PYTHONPATH": f"{site}{os.pathsep}{ROOT}", **env}
    code = f"import sys; from ggufy import installed\nprint({call})"
    done = subprocess.run([sys.executable, "-c", code], env=kept, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_from_the_index(tmp_path: Path) -> None:
    record(tmp_path, None)
    assert said(tmp_path, "installed.command('train')") == f"{PIP} install '{NAME}[train]'"
    again = said(tmp_path, "installed.command(options='--force-reinstall')")
    assert again == f"{PIP} install --force-reinstall {NAME}"


def test_from_where_it_came(tmp_path: Path) -> None:
    wheel = tmp_path / "a wheel.whl"
    wheel.touch()
    git = {"vcs": "git", "commit_id": COMMIT}
    url = "https://host.example/ann/ggufy"
    ways: list[tuple[dict[str, Any], str]] = [
        ({"url": "file:///home/ann/ggufy", "dir_info": {"editable": True}}, "-e '/home/ann/ggufy[train]'"),
        ({"url": "file:///home/a%20b/ggufy", "dir_info": {"editable": True}}, "-e '/home/a b/ggufy[train]'"),
        ({"url": tmp_path.as_uri(), "dir_info": {}}, f"'{NAME}[train] @ {tmp_path.as_uri()}'"),
        ({"url": wheel.as_uri(), "archive_info": {}}, f"'{NAME}[train] @ {wheel.as_uri()}'"),
        # A wheel that is gone.
        ({"url": "file:///gone/x.whl", "archive_info": {}}, f"'{NAME}[train]'"),
        ({"url": f"{url}.whl", "archive_info": {}}, f"'{NAME}[train] @ {url}.whl'"),
        ({"url": url, "vcs_info": git}, f"'{NAME}[train] @ git+{url}@{COMMIT}'"),
        ({"url": url, "vcs_info": {**git, "requested_revision": "main"}}, f"'{NAME}[train] @ git+{url}@main'"),
    ]
    for number, (source, spec) in enumerate(ways):
        site = tmp_path / str(number)
        record(site, source)
        assert said(site, "installed.command('train')") == f"{PIP} install {spec}"


def test_with_what_it_was_installed(tmp_path: Path) -> None:
    record(tmp_path / "uv", None, installer="uv")
    spec, python = f"'{NAME}[train]'", shlex.quote(sys.executable)
    assert said(tmp_path / "uv", "installed.command('train')") == f"uv pip install --python {python} {spec}"
    assert said(tmp_path / "uv", "installed.command('train')", VIRTUAL_ENV=sys.prefix) == f"uv pip install {spec}"
    reinstall = said(tmp_path / "uv", "installed.command(options='--force-reinstall')", VIRTUAL_ENV=sys.prefix)
    assert reinstall == f"uv pip install --reinstall {NAME}"
    for tool, mark, beside in (
        ("pipx", "pipx_metadata.json", f"pipx inject {NAME} wandb"),
        ("uv tool", "uv-receipt.toml", f"uv tool install --with wandb {NAME}"),
    ):
        prefix = tmp_path / tool.replace(" ", "-")
        record(prefix / "site", None)
        (prefix / mark).write_text("", "utf-8")
        moved = f"[setattr(sys, 'prefix', {prefix.as_posix()!r}), installed.%s][1]"
        assert said(prefix / "site", moved % "command('train')") == f"{tool} install --force {spec}"
        assert said(prefix / "site", moved % "command_for('wandb')") == beside


def test_a_hint_works_when_it_is_typed(tmp_path: Path) -> None:
    """pip itself reads the command of a wheel with an extra, and finds the wheel."""
    wheel = tmp_path / "ggufy_tune-0.1.0-py3-none-any.whl"
    build = "import zipfile, sys\nz = zipfile.ZipFile(sys.argv[1], 'w')\nd = 'ggufy_tune-0.1.0.dist-info/'\n"
    build += "z.writestr(d + 'METADATA', 'Metadata-Version: 2.1\\nName: ggufy-tune\\nVersion: 0.1.0\\n"
    build += "Provides-Extra: train\\n')\nz.writestr(d + 'WHEEL', 'Wheel-Version: 1.0\\nGenerator: x\\n"
    build += "Root-Is-Purelib: true\\nTag: py3-none-any\\n')\nz.writestr(d + 'RECORD', '')\nz.close()"
    subprocess.run([sys.executable, "-c", build, str(wheel)], check=True)
    record(tmp_path / "site", {"url": wheel.as_uri(), "archive_info": {}})
    typed = said(tmp_path / "site", "installed.command('train')")
    done = subprocess.run(
        f"{typed} --dry-run --no-index --ignore-installed", shell=True, capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert "Would install ggufy-tune-0.1.0" in done.stdout


def test_a_stranger_with_a_program_of_this_name_is_found(tmp_path: Path) -> None:
    record(tmp_path, None)
    other = record(tmp_path, None, name="ggufy")
    assert "ggufy 0.1.0" not in said(tmp_path, "installed.rivals()")
    (other / "RECORD").write_text("../../../bin/ggufy,sha256=x,5\n../../../bin/ggufy-simple,sha256=x,5\n", "utf-8")
    assert "ggufy 0.1.0" in said(tmp_path, "installed.rivals()")
    code = [sys.executable, "-m", "ggufy", "doctor"]
    env = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
    done = subprocess.run(code, env=env, capture_output=True, text=True, cwd=tmp_path)
    assert "ggufy 0.1.0 is another program" in done.stdout
    assert "uninstall ggufy, then" in done.stdout


# Our name as a requirement: not a path, not `ggufy-tune`, not a word of a sentence.
_HINT = re.compile(r"""(?:\bpip|\buv|\bpipx)\b[^\n]*?\binstall\b(?P<what>[^\n`]*)""")
_STRANGER = re.compile(r"""(?<![\w./@-])ggufy(?:\[[\w,]*\])?(?=["'\s\\]|$)""")


def test_no_hint_names_a_stranger() -> None:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True)
    seen = 0
    for name in listed.stdout.split("\n"):
        path = ROOT / name
        if path.suffix not in (".py", ".md", ".ipynb", ".toml", ".yaml", ".yml", "") or not path.is_file():
            continue
        if path == Path(__file__):
            continue
        for line in path.read_text("utf-8", errors="ignore").splitlines():
            for found in _HINT.finditer(line):
                seen += 1
                assert not _STRANGER.search(found["what"]), f"{name}: {line.strip()}"
            # An extra is ours alone, wherever it is named.
            assert "ggufy[" not in line, f"{name}: {line.strip()}"
    assert seen > 5
    assert _STRANGER.search(_HINT.search("pip install 'ggufy[train]'")["what"])  # type: ignore[index]
    assert _STRANGER.search(_HINT.search("pip install --upgrade ggufy")["what"])  # type: ignore[index]
