"""Fill vendor/llama.cpp from the pinned source package of llama-cpp-python. Needs Python and pip, nothing else."""

import hashlib
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

HERE = Path(__file__).parent / "llama.cpp"
KEPT = {"README.md", "PIN"}
# The converter, its library, and the vocabularies; not the 100 MB of apps, media and tests.
WANTED = ("convert_hf_to_gguf.py", "convert_lora_to_gguf.py", "conversion/", "gguf-py/", "models/", "LICENSE")


def main() -> None:
    pin = dict(line.split() for line in (HERE / "PIN").read_text(encoding="utf-8").splitlines())
    with tempfile.TemporaryDirectory() as folder:
        package = f"{pin['package']}=={pin['version']}"
        # pip checks the hash before it runs anything of the package; below it is checked once more.
        wanted = Path(folder) / "wanted.txt"
        wanted.write_text(f"{package} --hash=sha256:{pin['sha256']}\n", encoding="utf-8")
        fetch = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", pin["package"]]
        subprocess.run([*fetch, "--dest", folder, "--requirement", str(wanted)], check=True)
        archive = next(Path(folder).glob("*.tar.gz"))
        found = hashlib.sha256(archive.read_bytes()).hexdigest()
        if found != pin["sha256"]:
            sys.exit(f"{archive.name}: sha256 is {found}, but PIN says {pin['sha256']}; nothing was unpacked")
        unpack(archive, Path(folder) / "new")
        for old in HERE.iterdir():
            if old.name not in KEPT:
                shutil.rmtree(old) if old.is_dir() else old.unlink()
        # The converter last: make takes its presence for the whole.
        for new in sorted((Path(folder) / "new").iterdir(), key=lambda path: path.name == WANTED[0]):
            shutil.move(str(new), HERE / new.name)
    (HERE / WANTED[0]).touch()
    print(f"vendor/llama.cpp is {package}")


def unpack(archive: Path, target: Path) -> None:
    with tarfile.open(archive) as tar:
        for member in tar:
            _, _, name = member.name.partition("/vendor/llama.cpp/")
            if member.isfile() and name.startswith(WANTED):
                path = target / name
                if target not in path.resolve().parents:
                    sys.exit(f"{archive.name}: {member.name} points outside the package")
                path.parent.mkdir(parents=True, exist_ok=True)
                content = tar.extractfile(member)
                assert content is not None
                path.write_bytes(content.read())


if __name__ == "__main__":
    main()
