"""An S3 server on this machine (moto), for tests of stores."""

from collections.abc import Iterator
from contextlib import contextmanager
from urllib.request import Request, urlopen

import pytest
from moto.server import ThreadedMotoServer

from vit_core.storage.object_store import _client


@contextmanager
def s3_server() -> Iterator[str]:
    """Serves an empty bucket `bucket`, and sets the environment by which clients find it; gives its address."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    address = f"http://{host}:{port}"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", address)
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            patch.setenv(name, "testing")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        _forget_clients()
        urlopen(Request(f"{address}/moto-api/reset", method="POST")).close()  # all servers of a process serve one state
        _client("s3").mkdir("bucket")
        yield address
    _forget_clients()
    server.stop()


def _forget_clients() -> None:
    """They keep the address that was set when they were made; fsspec keeps them too."""
    import s3fs

    _client.cache_clear()
    s3fs.S3FileSystem.clear_instance_cache()
