"""``mlflow server`` on PostgreSQL with artifacts on S3, to try out: ``make stack`` runs it.

PostgreSQL is Debian's, in a temporary folder. The S3 server is moto's, in this process and in
memory, or the one that ``AWS_ENDPOINT_URL`` names. Nothing is left when it stops.
"""

import argparse
import logging
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from servers import ServerError, free_port, tracking_server

BUCKET = "mlflow"
ACCOUNT = "postgres"  # PostgreSQL refuses to run as root
MOTO_KEYS = {
    "AWS_ACCESS_KEY_ID": "testing",
    "AWS_SECRET_ACCESS_KEY": "testing",
    "AWS_DEFAULT_REGION": "us-east-1",
}


@dataclass(frozen=True)
class Postgres:
    """A database server of its own."""

    binaries: Path
    folder: Path
    port: int
    password: str

    @property
    def url(self) -> str:
        """Address, for SQLAlchemy."""
        return f"postgresql+psycopg2://mlflow:{self.password}@127.0.0.1:{self.port}/postgres"

    def start(self) -> None:
        """Start it, and wait until it answers."""
        # no socket, and no waiting for the disk: the folder goes with the process
        options = f"-p {self.port} -h 127.0.0.1 -c unix_socket_directories='' -F"
        self._control("start", "-w", "-t", "60", "-l", str(self.folder / "log"), "-o", options)

    def stop(self, mode: str = "fast") -> None:
        """Stop it."""
        self._control("stop", "-w", "-m", mode)

    def restart(self, mode: str = "fast") -> None:
        """Stop it and start it again."""
        self.stop(mode)
        self.start()

    def _control(self, verb: str, *arguments: str) -> None:
        self.call("pg_ctl", verb, "-D", str(self.folder / "data"), *arguments)

    def call(self, program: str, *arguments: str) -> None:
        """Run one of PostgreSQL's programs, as another user where this one is root."""
        as_root = os.name == "posix" and os.getuid() == 0
        account = {"user": ACCOUNT, "group": ACCOUNT, "extra_groups": []} if as_root else {}
        done = subprocess.run(
            [self.binaries / program, *arguments],
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=120,
            **account,
        )
        if done.returncode:
            log = self.folder / "log"
            more = log.read_text()[-2000:] if log.exists() else ""
            raise ServerError(f"{program} {arguments[0]} failed: {done.stdout}{more}")


def find_postgres() -> Path | None:
    """Folder of PostgreSQL's programs, the newest of Debian's or the one on PATH."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=_version)
    on_path = shutil.which("initdb")
    return found[-1].parent if found else Path(on_path).parent if on_path else None


def _version(path: Path) -> float:
    return float(path.parts[-3]) if path.parts[-3].replace(".", "").isdigit() else 0.0


@contextmanager
def postgres() -> Iterator[Postgres]:
    """Start PostgreSQL with an empty database, and remove it in the end."""
    binaries = find_postgres()
    if binaries is None:
        raise ServerError("PostgreSQL is not installed: apt-get install postgresql.")
    with tempfile.TemporaryDirectory(prefix="dfm-postgres-") as name:
        folder = Path(name)
        server = Postgres(binaries, folder, free_port(), secrets.token_hex(16))
        (folder / "password").write_text(server.password)
        if os.getuid() == 0:
            for path in (folder, folder / "password"):
                shutil.chown(path, ACCOUNT, ACCOUNT)
        server.call(
            "initdb",
            "-D",
            str(folder / "data"),
            "-U",
            "mlflow",
            "-E",
            "UTF8",
            "-A",
            "scram-sha-256",
            f"--pwfile={folder / 'password'}",
            "--no-sync",
        )
        server.start()
        try:
            yield server
        finally:
            if (folder / "data" / "postmaster.pid").exists():
                server.stop("immediate")


@contextmanager
def s3() -> Iterator[dict[str, str]]:
    """Give the environment of an S3 server: the one that is named, or moto's."""
    if "AWS_ENDPOINT_URL" in os.environ:
        yield {k: v for k, v in os.environ.items() if k.startswith("AWS_")}
        return
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    try:
        yield MOTO_KEYS | {"AWS_ENDPOINT_URL": f"http://{host}:{port}"}
    finally:
        server.stop()


def mlflow_server(
    database: str, bucket: str, environment: Mapping[str, str], log: Path, *, proxied: bool = False
) -> AbstractContextManager[str]:
    """Start ``mlflow server`` and give its URL.

    Clients write artifacts to S3 by themselves, or through the server where it is `proxied`
    (and in an experiment with an artifact location ``mlflow-artifacts:/...``).
    """
    root = "mlflow-artifacts:/" if proxied else f"s3://{bucket}"
    return tracking_server(
        database,
        log,
        "--default-artifact-root",
        root,
        artifacts=f"s3://{bucket}",
        environment=os.environ | environment,
    )


def make_bucket(environment: Mapping[str, str], bucket: str) -> None:
    """Make the bucket unless it is there; keys come from `environment` or boto3's own chain."""
    import boto3
    from botocore.exceptions import ClientError

    client = boto3.client(
        "s3",
        endpoint_url=environment["AWS_ENDPOINT_URL"],
        region_name=environment.get("AWS_DEFAULT_REGION"),
        aws_access_key_id=environment.get("AWS_ACCESS_KEY_ID"),
        aws_secret_access_key=environment.get("AWS_SECRET_ACCESS_KEY"),
        aws_session_token=environment.get("AWS_SESSION_TOKEN"),
    )
    try:
        client.head_bucket(Bucket=bucket)
    except ClientError:
        client.create_bucket(Bucket=bucket)


def main() -> None:
    """Run the stack until it is interrupted."""
    parser = argparse.ArgumentParser(description="mlflow server on PostgreSQL and S3")
    parser.add_argument("--bucket", default=BUCKET)
    parser.add_argument("--proxied", action="store_true", help="artifacts go through the server")
    given = parser.parse_args()
    for number in (signal.SIGINT, signal.SIGTERM):  # a shell's background jobs ignore the first
        signal.signal(number, signal.default_int_handler)
    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # moto's line for every request
    own = "AWS_ENDPOINT_URL" not in os.environ
    try:
        with ExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="dfm-stack-")))
            environment = stack.enter_context(s3())
            make_bucket(environment, given.bucket)
            database = stack.enter_context(postgres())
            print(f"PostgreSQL from {database.binaries} on port {database.port}", flush=True)
            url = stack.enter_context(
                mlflow_server(
                    database.url,
                    given.bucket,
                    environment,
                    folder / "server.log",
                    proxied=given.proxied,
                )
            )
            print(f"MLflow on {url}, artifacts in s3://{given.bucket}. In another shell:\n")
            exported = {"MLFLOW_TRACKING_URI": url}
            if not given.proxied:
                exported |= environment if own else {}
            else:
                exported["MLFLOW_ENABLE_PROXY_MULTIPART_UPLOAD"] = "true"
            print("\n".join(f"    export {k}={v}" for k, v in exported.items()))
            print("\nCtrl-C stops and removes everything.", flush=True)
            signal.pause()
    except KeyboardInterrupt:
        print("\nStopped.")
    except ServerError as error:
        sys.exit(f"Error: {error}")


if __name__ == "__main__":
    main()
