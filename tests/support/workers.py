"""Functions that tests run in other processes, by ``manage.py shell -c``."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from django.conf import settings
from django.contrib.staticfiles.storage import staticfiles_storage
from django.core.cache.backends.locmem import LocMemCache
from django.core.files.base import ContentFile

PATIENCE = 20  # seconds after which a child process is considered to hang


def save_all(target: Any = staticfiles_storage) -> None:
    """Save every source, one after another, by the storage or by one of its batches."""
    root = Path(settings.STATICFILES_DIRS[0])
    for path in sorted(path for path in root.rglob("*") if path.is_file()):
        with path.open("rb") as file:
            target.save(str(path.relative_to(root)), file)


def save_all_in_a_batch() -> None:
    """Save every source in a batch."""
    with staticfiles_storage.batch() as batch:
        save_all(batch)


# Processes that fork. Each function prints the outcomes of its child processes.


def share() -> None:
    """Use the storage, fork, and use it in parent and children at the same time."""
    _work("before")
    children = [_fork(partial(_work, f"child{number}")) for number in range(4)]
    _work("parent")
    _print_outcomes(children)


def fork_while_busy() -> None:
    """Fork while a batch uploads, and use the inherited storage in the children."""
    children = []
    with staticfiles_storage.batch() as batch:
        for number in range(200):
            _save(f"busy/{number}", batch)
            if number % 40 == 20:
                children.append(_fork(partial(_work, f"child{number}")))
    _print_outcomes(children)


class Held(LocMemCache):
    """A cache that waits for the event `go_on` before it writes."""

    reached = threading.Event()
    go_on = threading.Event()

    def set(self, *args: Any, **kwargs: Any) -> Any:
        self.reached.set()
        self.go_on.wait(PATIENCE)
        return super().set(*args, **kwargs)


def fork_while_invalidating() -> None:
    """Fork while a thread writes to the cache, and write to it in the child too."""
    thread = threading.Thread(target=_save, args=("thread",))
    thread.start()
    assert Held.reached.wait(PATIENCE)

    def work() -> None:
        Held.go_on.set()
        _work("child")

    child = _fork(work)
    Held.go_on.set()
    thread.join()
    _print_outcomes([child])


def fork_in_batch(how: str) -> None:
    """Fork in a batch with an unfinished upload and a delete.

    In the child the batch raises an error, and it uses the storage instead. Then it
    "exits" by `os._exit`, "raises" SystemExit, or leaves the block normally.
    """
    _save("old")
    is_child = False
    children = []
    try:
        with staticfiles_storage.batch() as batch:
            # The first upload is sent alone, because its ETag is examined.
            _save("first", batch)
            _save("parent", batch)
            batch.delete("old")
            children.append(os.fork())
            is_child = children == [0]
            if is_child:
                for call in (lambda: _save("no", batch), lambda: batch.delete("first")):
                    try:
                        call()
                    except RuntimeError:
                        pass
                    else:
                        raise AssertionError("the child used its parent's batch")
                _save("child")
                if how == "exits":
                    _save("done")
                    os._exit(0)
                if how == "raises":
                    raise SystemExit
            else:
                _print_outcomes(children)
    except SystemExit:
        pass
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    if is_child:
        _save("done")
        os._exit(0)


def serve(bind: str) -> None:
    """Use the storage, and run gunicorn with several workers that inherit it."""
    from gunicorn.app.base import BaseApplication

    _work("preloaded")

    def application(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        name = environ["PATH_INFO"].strip("/")
        _check(name)
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [str(os.getpid()).encode()]

    class Gunicorn(BaseApplication):  # type: ignore[misc]
        def load_config(self) -> None:
            for key, value in {
                "bind": bind,
                "workers": 3,
                "preload_app": True,
                "control_socket_disable": True,
            }.items():
                if key in self.cfg.settings:  # Some versions do not have all of them.
                    self.cfg.set(key, value)

        def load(self) -> Any:
            return application

    Gunicorn().run()


def _work(name: str) -> None:
    """Save and read files, and assert that each response belongs to its request."""
    for number in range(10):
        _check(f"{name}/plain{number}")
    with staticfiles_storage.batch() as batch:
        for number in range(10):
            _save(f"{name}/batch{number}", batch)
    for number in range(10):
        _check_content(f"{name}/batch{number}")


def _check(name: str) -> None:
    assert not staticfiles_storage.exists(name), f"{name} is not there yet"
    _save(name)
    assert staticfiles_storage.exists(name), f"{name} is there"
    _check_content(name)


def _save(name: str, target: Any = staticfiles_storage) -> None:
    assert target.save(name, ContentFile(content_of(name))) == name


def _check_content(name: str) -> None:
    with staticfiles_storage.open(name) as file:
        assert file.read() == content_of(name), f"the content of {name}"
    assert staticfiles_storage.size(name) == len(content_of(name)), f"size of {name}"


def content_of(name: str) -> bytes:
    """Return contents that no other name has, with a length that few others have."""
    return name.encode() * (1 + sum(name.encode()) % 50)


def _fork(work: Callable[[], Any]) -> int:
    child = os.fork()
    if child == 0:
        try:
            work()
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    return child


def _print_outcomes(children: list[int]) -> None:
    deadline = time.monotonic() + PATIENCE
    outcomes = [_outcome(child, deadline) for child in children]
    print(json.dumps(outcomes), flush=True)


def _outcome(child: int, deadline: float) -> str:
    while time.monotonic() < deadline:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return f"exit {os.waitstatus_to_exitcode(status)}"
        time.sleep(0.02)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return "hangs"
