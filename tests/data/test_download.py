"""Files over HTTP, from a server in this process: what arrives, and what is refused and why."""

import gzip
import hashlib
import http.server
import threading

import numpy as np
import pytest

from imgfast.data import DataError, cache_folder, download, fashion_mnist, load_data, split


class Server(http.server.ThreadingHTTPServer):
    """Serves ``files``; ``asked`` lists the paths that clients wanted."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files, self.asked = {}, []
        self.stop = threading.Event()
        self.address = f"http://127.0.0.1:{self.server_port}/"


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.server.asked.append(self.path)
        content = self.server.files.get(self.path)
        if content is None:
            self.send_error(404)
        elif callable(content):
            content(self)
        else:
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

    def log_message(self, *_):
        pass


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.stop.set()
        server.shutdown()
        thread.join()


def fetch(server, path, *names, limit=1 << 20, check=lambda _: None, on_progress=None):
    download.download([server.address + name for name in names], path, limit, check, on_progress)


def test_the_bytes_arrive_and_progress_is_told(server, tmp_path):
    server.files["/a"] = np.random.default_rng(0).bytes(300_000)
    calls = []
    fetch(server, tmp_path / "a", "a", on_progress=lambda *counts: calls.append(counts))
    assert (tmp_path / "a").read_bytes() == server.files["/a"]
    assert calls[-1] == (300_000, 300_000) and calls == sorted(calls)


def test_the_second_address_is_asked_where_the_first_fails(server, tmp_path):
    server.files["/b"] = b"right"
    fetch(server, tmp_path / "a", "a", "b")
    assert server.asked == ["/a", "/b"] and (tmp_path / "a").read_bytes() == b"right"


def test_what_the_check_refuses_does_not_stay(server, tmp_path):
    server.files.update({"/a": b"wrong", "/b": b"wrong too"})

    def check(path):
        raise DataError(f"{path.name}: {path.read_bytes()} is not it")

    with pytest.raises(DataError, match=r"cannot be downloaded: a: b'wrong' is.*; a: b'wrong too'"):
        fetch(server, tmp_path / "a", "a", "b", check=check)
    assert list(tmp_path.iterdir()) == []


def says(length, content):
    """An answer whose header says another length; none for ``None``."""

    def answer(handler):
        handler.send_response(200)
        if length is not None:
            handler.send_header("Content-Length", str(length))
        handler.end_headers()
        handler.wfile.write(content)

    return answer


def redirects(handler):
    handler.send_response(302)
    handler.send_header("Location", "file:///etc/hostname")
    handler.end_headers()


@pytest.mark.parametrize(
    "answer, rule",
    [
        (says(1 << 40, b"x"), "must have at most 1000 bytes"),
        (says(None, b"x" * 100_000), "must have at most 1000 bytes"),
        (says(500, b"x" * 400), "must send 500 bytes, sent 400"),
        (says("many", b"x"), "invalid literal"),
        (lambda handler: handler.wfile.write(b"\xff\xfe nonsense\r\n\r\n"), "nonsense"),
        (lambda handler: None, "without response"),
        (redirects, "file:///etc/hostname' is not allowed"),
    ],
)
def test_bad_answers_are_refused_by_rule(server, tmp_path, answer, rule):
    server.files["/a"] = answer
    with pytest.raises(DataError, match=rule) as caught:
        fetch(server, tmp_path / "a", "a", limit=1000)
    assert server.address in str(caught.value) and "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_silence_and_slowness_have_an_end(server, tmp_path, monkeypatch):
    def silent(handler):
        handler.server.stop.wait(10)

    def slow(handler):
        handler.send_response(200)
        handler.end_headers()
        while not handler.server.stop.wait(0.02):
            handler.wfile.write(b"x")

    server.files.update({"/silent": silent, "/slow": slow})
    monkeypatch.setattr(download, "SILENCE_SECONDS", 0.2)
    monkeypatch.setattr(download, "TOTAL_SECONDS", 0.3)
    with pytest.raises(DataError, match=r"timed out.*must arrive within 0 s"):
        fetch(server, tmp_path / "a", "silent", "slow")


def test_other_schemes_and_absent_servers(tmp_path):
    (tmp_path / "secret").write_bytes(b"x")
    with pytest.raises(DataError, match=r"must be an HTTP or HTTPS address.*refused"):
        download.download(
            [(tmp_path / "secret").as_uri(), "http://127.0.0.1:1/a"], tmp_path / "a", 9, print
        )
    assert not (tmp_path / "a").exists()


@pytest.fixture
def small_full(server, tmp_path, monkeypatch):
    """A set in the layout of the full Fashion-MNIST, 20 + 10 pictures, at the second address."""
    monkeypatch.setenv("IMGFAST_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv(fashion_mnist.FOLDER_VARIABLE, raising=False)
    monkeypatch.setattr(fashion_mnist, "_DEBIAN_FOLDER", tmp_path / "absent")
    addresses = (server.address + "gone/", server.address + "here/")
    monkeypatch.setattr(fashion_mnist, "_ADDRESSES", addresses)
    dice = np.random.default_rng(0)
    arrays = {}
    for name in fashion_mnist._FULL:
        count = 20 if name.startswith("train") else 10
        if "images" in name:
            arrays[name] = dice.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        else:
            arrays[name] = (np.arange(count) % 10).astype(np.uint8)
        header = bytes((0, 0, 8, arrays[name].ndim))
        header += b"".join(side.to_bytes(4, "big") for side in arrays[name].shape)
        server.files[f"/here/{name}.gz"] = gzip.compress(header + arrays[name].tobytes())
    sums = {name: hashlib.sha256(values).hexdigest() for name, values in arrays.items()}
    monkeypatch.setattr(fashion_mnist, "_FULL", sums)
    return arrays


def test_fashion_mnist_full_is_fetched_once_and_only_if_asked(server, small_full):
    with pytest.raises(DataError, match="imgfast data fashion-mnist-full --download"):
        load_data("fashion-mnist-full")
    assert server.asked == []
    data = load_data("fashion-mnist-full", download=True)
    assert len(server.asked) == 8  # each from the first address in vain, then from the second
    train, test = split(data, seed=0)
    assert np.array_equal(train.images[:, 0], small_full["train-images-idx3-ubyte"])
    assert np.array_equal(test.images[:, 0], small_full["t10k-images-idx3-ubyte"])
    load_data("fashion-mnist-full")
    load_data("fashion-mnist-full", download=True)
    assert len(server.asked) == 8
    folder = cache_folder() / "fashion-mnist"
    assert sorted(path.name for path in folder.iterdir()) == sorted(f"{n}.gz" for n in small_full)


def test_other_pictures_than_the_pinned_ones_are_refused(server, small_full):
    """The right container and size, one pixel another; what was right before it stays."""
    name = "t10k-images-idx3-ubyte"
    altered = bytearray(gzip.decompress(server.files[f"/here/{name}.gz"]))
    altered[500] ^= 1
    right = server.files[f"/here/{name}.gz"]
    server.files[f"/here/{name}.gz"] = gzip.compress(bytes(altered))
    with pytest.raises(DataError, match=r"404.*SHA-256 of the values must be"):
        load_data("fashion-mnist-full", download=True)
    left = sorted(path.name for path in (cache_folder() / "fashion-mnist").iterdir())
    assert left == ["train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"]
    server.files[f"/here/{name}.gz"] = right
    server.asked.clear()
    assert len(load_data("fashion-mnist-full", download=True)) == 30
    assert len(server.asked) == 4  # the two that were missing
