"""A real S3 server on loopback."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import pytest


@contextmanager
def s3_bucket() -> Iterator[str]:
    """Serves an empty bucket, to which s3fs talks as long as this lasts; yields its URL."""
    s3fs = pytest.importorskip("s3fs")
    moto_server = pytest.importorskip("moto.server")
    import boto3

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = moto_server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    settings = {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in settings.items():
            patch.setenv(name, value)
        boto3.client("s3").create_bucket(Bucket="bucket")
        # Servers of one process share their objects: what an earlier one's tests left is not ours.
        boto3.resource("s3").Bucket("bucket").objects.all().delete()
        # Connections are kept by the process: not those to another test's server.
        s3fs.S3FileSystem.clear_instance_cache()
        yield "s3://bucket"
        s3fs.S3FileSystem.clear_instance_cache()
    server.stop()
