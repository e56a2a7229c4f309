"""A real S3 server on this machine (moto), behind a proxy that injects the faults of real stores.

A request has at most one fault: `503` (SlowDown; the request is not executed), `slow` (the response is delayed), `reset` (the
connection is closed; the request is not executed), `lost` (the request is executed, and the connection is closed before the
response), `cut` (the response ends in the middle of its body). Listings omit keys written in the last `lag_s` seconds.

`python faulty_s3.py` runs the server and prints its URL.
"""

import asyncio
import logging
import os
import random
import re
import threading
import time
from collections import Counter
from types import TracebackType
from urllib.parse import unquote
from xml.sax.saxutils import unescape

from aiohttp import ClientSession, ClientTimeout, web

FAULTS = ("503", "slow", "reset", "lost", "cut")
_HOP_HEADERS = {"connection", "keep-alive", "transfer-encoding", "content-length", "content-encoding", "te", "upgrade"}
_SLOW_DOWN = "<?xml version='1.0'?><Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"


class FaultyS3:
    """The server and its proxy; a context manager. `environment` holds the variables that a client needs."""

    def __init__(self, *, rate: float = 0.0, lag_s: float = 0.0, seed: int = 0) -> None:
        self.rate, self.lag_s = rate, lag_s
        self.requests = 0
        self.faults: Counter[str] = Counter()
        self.lagged = 0  # entries omitted from listings
        self._random = random.Random(seed)
        self._written: dict[str, float] = {}  # time of the last write, by key
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._serve, daemon=True)

    @property
    def environment(self) -> dict[str, str]:
        return {
            "AWS_ENDPOINT_URL": self.url,
            "AWS_ACCESS_KEY_ID": "testing",
            "AWS_SECRET_ACCESS_KEY": "testing",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
            "NO_PROXY": "127.0.0.1",
        }

    def settle(self) -> None:
        """Make everything written so far visible in listings."""
        self._written.clear()

    def __enter__(self) -> "FaultyS3":
        from moto.server import ThreadedMotoServer

        logging.getLogger("werkzeug").setLevel(logging.ERROR)
        self._store = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
        self._store.start()
        host, port = self._store.get_host_and_port()
        self._target = f"http://{host}:{port}"
        self._thread.start()
        self._ready.wait()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()
        self._store.stop()

    def _serve(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self._run())
        self._loop.close()

    async def _run(self) -> None:
        self._stop = asyncio.Event()
        app = web.Application(client_max_size=1 << 30)
        app.router.add_route("*", "/{path:.*}", self._answer)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        async with ClientSession(auto_decompress=False, timeout=ClientTimeout(total=120)) as self._client:
            site = web.TCPSite(runner, "127.0.0.1", 0)
            await site.start()
            self.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
            self._ready.set()
            await self._stop.wait()
            await runner.cleanup()

    def _choose_fault(self, method: str) -> str:
        self.requests += 1
        if self._random.random() >= self.rate:
            return ""
        fault = self._random.choice([one for one in FAULTS if one != "cut" or method == "GET"])
        self.faults[fault] += 1
        return fault

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        fault = self._choose_fault(request.method)
        body = await request.read()
        if fault == "503":
            return web.Response(status=503, text=_SLOW_DOWN, content_type="application/xml")
        if fault == "reset":
            return self._close(request)
        if fault == "slow":
            await asyncio.sleep(self._random.uniform(0.05, 0.5))
        headers = {name: value for name, value in request.headers.items() if name.lower() not in _HOP_HEADERS}
        url = f"{self._target}{request.raw_path}"
        async with self._client.request(request.method, url, data=body, headers=headers, allow_redirects=False) as answer:
            data, status = await answer.read(), answer.status
            head = {name: value for name, value in answer.headers.items() if name.lower() not in _HOP_HEADERS}
            length = answer.headers.get("Content-Length", str(len(data)))
        self._record_write(request, status)
        if self.lag_s and request.method == "GET" and "list-type" in request.query:
            data = self._remove_recent(data)
            length = str(len(data))
        if fault == "lost":
            return self._close(request)
        if request.method == "HEAD":
            data = b""
        response = web.StreamResponse(status=status, headers={**head, "Content-Length": length})
        await response.prepare(request)
        await response.write(data[: len(data) // 2] if fault == "cut" else data)
        if fault == "cut":
            return self._close(request)
        await response.write_eof()
        return response

    @staticmethod
    def _close(request: web.Request) -> web.Response:
        if request.transport is not None:
            request.transport.abort()
        return web.Response(status=500)

    def _record_write(self, request: web.Request, status: int) -> None:
        key = unquote(request.path).partition("/")[2].partition("/")[2]
        if status < 300 and key and (request.method == "PUT" or "uploadId" in request.query):
            self._written[key] = time.monotonic()

    def _remove_recent(self, listing: bytes) -> bytes:
        """Return a listing without the keys that were written recently."""

        def filter_entry(entry: re.Match[bytes]) -> bytes:
            key = re.search(rb"<Key>(.*?)</Key>", entry[0])
            assert key
            if time.monotonic() - self._written.get(unescape(key[1].decode()), -1e9) < self.lag_s:
                self.lagged += 1
                return b""
            return entry[0]

        return re.sub(rb"<Contents>.*?</Contents>", filter_entry, listing, flags=re.DOTALL)


if __name__ == "__main__":
    with FaultyS3(rate=float(os.environ.get("RATE", "0.1")), lag_s=float(os.environ.get("LAG_S", "0"))) as s3:
        print(s3.url, flush=True)
        threading.Event().wait()
