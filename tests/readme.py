"""The README's commands: found, parsed, and run.

``python -m tests.readme`` runs every one of them in a folder of its own, on real solar cells where
the README names them, on drawn pictures where it has a placeholder, and on a local S3 server; about
ten minutes. The suite parses them all (``test_readme.py``).
"""

import os
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# `make demo` and `make test` are run by .ci/run and by hand; installing is what they do first.
ELSEWHERE = ("make ", "pip ")
SERVERS = {"mlflow ui": "/health", "mlflow models serve": "/ping"}
# The weights of torchvision's backbones come from the internet: random ones stand in for them.
STAND_IN = " -P weights=random -P image_size=64"
# What the README's Python takes for granted: rows of numbers, with their classes.
ROWS = "import numpy as np; good = np.random.default_rng(0).normal(size=(60, 8)); "
ROWS += "classes, rows = np.repeat([0, 1], 30), good[:5]"


def blocks(kind: str = "sh|python", path: Path = ROOT / "README.md") -> list[str]:
    """Fenced blocks of a `kind`, each with its continued lines joined."""
    text = re.sub(r"\\\n\s*", " ", path.read_text())
    text = re.sub(r"\|\n {2}", "| ", text)
    return [found.strip() for found in re.findall(rf"^```(?:{kind})\n(.*?)^```", text, re.M | re.S)]


def is_python(block: str) -> bool:
    return re.match(r"(import|from|pictures =)", block) is not None


def words() -> int:
    """Words outside code blocks."""
    return len(
        re.sub(r"^```.*?^```", "", (ROOT / "README.md").read_text(), flags=re.M | re.S).split()
    )


def without_comment(line: str) -> str:
    return re.sub(r"\s+# .*", "", line).strip()


def commands() -> list[str]:
    """Commands of the shell, without comments."""
    lines = [line for block in blocks() if not is_python(block) for line in block.splitlines()]
    return [without_comment(line) for line in lines if line.strip()]


def steps() -> list[str]:
    """Everything to run, in the README's order; Python as one command a block."""
    found = []
    for block in blocks():
        if is_python(block):
            code = f"{ROWS}\n{block}"
            found.append(f"{shlex.quote(sys.executable)} -c {shlex.quote(code)}")
        else:
            found += [without_comment(line) for line in block.splitlines() if line.strip()]
    return [c for c in found if not c.startswith(ELSEWHERE)]


def stood_in(command: str, folder: Path, port: int) -> str:
    """Put what is at hand in the place of the README's placeholders."""
    for name, there in {
        "/pictures": folder / "pictures",
        "/archive": folder / "pictures",
        "cell.png": folder / "cell.png",
        ":5001": f":{port}",
        "--port 5001": f"--port {port}",
    }.items():
        command = re.sub(
            rf"(?<![\w:/]){re.escape(name)}(?!\w)" if name[0] == "/" else re.escape(name),
            str(there),
            command,
        )
    if re.search(r"mlflow run .*data=", command):
        return command + STAND_IN
    return command


def prepare(folder: Path) -> None:
    """Pictures under the names that the README's placeholders get."""
    import shutil

    from dfm_mlflow.data.catalog import load_catalog

    from .conftest import write_category

    for name in ("bottle", "a", "b"):
        write_category(folder / "pictures", name)
    cells = load_catalog("elpv", ["mono"])
    unseen = [item for item in cells.test if item.label == "good"]  # never fitted to
    for name, items in {"new_good": unseen[:40], "today": cells.test[:10]}.items():
        (folder / "pictures" / name).mkdir()
        for item in items:
            shutil.copy(item.path, folder / "pictures" / name)
    shutil.copy(cells.test[0].path, folder / "cell.png")
    for name in ("MLproject", "conda.yaml"):
        shutil.copy(ROOT / name, folder)


def run_all(folder: Path, environment: dict[str, str], port: int) -> list[str]:
    """Run the commands in their order; gives those that failed."""
    failed, servers = [], []
    try:
        for command in steps():
            real = stood_in(command, folder, port)
            print("$", real, flush=True)
            page = next((p for start, p in SERVERS.items() if command.startswith(start)), None)
            if page:
                servers.append(
                    subprocess.Popen(
                        real, shell=True, cwd=folder, env=environment, start_new_session=True
                    )
                )
                there = wait_for(5000 if "ui" in command else port, page)
                failed += [] if there else [command]
                continue
            start = time.monotonic()
            done = subprocess.run(real, shell=True, cwd=folder, env=environment, timeout=1200)
            print(f"-> {done.returncode} after {time.monotonic() - start:.0f} s", flush=True)
            if done.returncode:
                failed.append(command)
    finally:
        for server in servers:
            os.killpg(server.pid, signal.SIGTERM)
    return failed


def wait_for(port: int, page: str) -> bool:
    for _ in range(240):
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}{page}", timeout=2)
            return True
        except OSError:
            time.sleep(0.5)
    return False


def main() -> None:
    from moto.server import ThreadedMotoServer

    from .servers import free_port

    s3 = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    s3.start()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        environment = {
            **os.environ,
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "AWS_ENDPOINT_URL": "http://{}:{}".format(*s3.get_host_and_port()),
            "AWS_ACCESS_KEY_ID": "x",
            "AWS_SECRET_ACCESS_KEY": "x",
            "AWS_DEFAULT_REGION": "us-east-1",
            "MLFLOW_TRACKING_URI": "sqlite:///mlflow.db",
        }
        prepare(folder)
        fill = (
            "import boto3, pathlib; s3 = boto3.client('s3')\n"
            "s3.create_bucket(Bucket='archive')\n"
            f"for p in pathlib.Path({str(folder)!r}, 'pictures/today').iterdir():\n"
            f"    s3.upload_file(str(p), 'archive', '2025/05/' + p.stem + '.jpg')"
        )
        subprocess.run([sys.executable, "-c", fill], env=environment, check=True)
        failed = run_all(folder, environment, free_port())
    s3.stop()
    print("\n".join(["", *(f"FAILED: {c}" for c in failed)]) or "All of them work.")
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
