"""An S3-compatible store for tests: moto's server, on loopback, in a thread of this process."""

from __future__ import annotations

import logging
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import boto3
from moto.server import ThreadedMotoServer

BUCKET = "federation"
CREDENTIALS = {"AWS_ACCESS_KEY_ID": "operator", "AWS_DEFAULT_REGION": "us-east-1"}


@dataclass(frozen=True)
class Bucket:
    """A bucket at `endpoint`, which the environment names as an operator's would."""

    endpoint: str

    @classmethod
    @contextmanager
    def served(cls) -> Iterator[Bucket]:
        """Serve a bucket, and stop afterwards."""
        logging.getLogger("werkzeug").setLevel(logging.ERROR)
        server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
        server.start()
        host, port = server.get_host_and_port()
        values = {"AWS_ENDPOINT_URL": f"http://{host}:{port}", "AWS_SECRET_ACCESS_KEY": secrets.token_urlsafe(16)}
        before = {name: os.environ.get(name) for name in (*values, *CREDENTIALS)}
        os.environ.update(values | CREDENTIALS)
        try:
            boto3.client("s3").create_bucket(Bucket=BUCKET)
            yield cls(values["AWS_ENDPOINT_URL"])
        finally:
            server.stop()
            for name, value in before.items():
                if value is None:
                    del os.environ[name]
                else:
                    os.environ[name] = value

    def new_prefix(self) -> str:
        """Return the address of an empty prefix."""
        return f"s3://{BUCKET}/{secrets.token_hex(6)}"
