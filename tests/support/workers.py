"""What processes of the tests do with a storage, by ``manage.py shell -c``."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from django.conf import settings
from django.contrib.staticfiles.storage import staticfiles_storage
from django.core.cache.backends.locmem import LocMemCache
from django.core.files.base import ContentFile

PATIENCE = 20  # seconds, after which a child hangs


def save_all(target: Any = staticfiles_storage) -> None:
    """Save every source, one by one, in the storage or in a batch of it."""
    root = Path(settings.STATICFILES_DIRS[0])
    for path in sorted(path for path in root.rglob("*") if path.is_file()):
        with path.open("rb") as file:
            target.save(str(path.relative_to(root)), file)


def save_all_in_a_batch() -> None:
    """Save every source in a batch."""
    with staticfiles_storage.batch() as batch:
        save_all(batch)


# Parents and their children. Each prints how the children fared.


def share() -> None:
    """Parent and children use the storage at once, after the parent has used it."""
    _work("before")
    children = [_fork(lambda n=n: _work(f"child{n}")) for n in range(4)]
    _work("parent")
    _print_outcomes(children)


def fork_while_busy() -> None:
    """Fork in the midst of uploads, and let the children use what they inherit."""
    children = []
    with staticfiles_storage.batch() as batch:
        for number in range(200):
            _save(f"busy/{number}", batch)
            if number % 40 == 20:
                children.append(_fork(lambda n=number: _work(f"child{n}")))
    _print_outcomes(children)


class Held(LocMemCache):
    """A cache that writes nothing before the event `go_on`."""

    reached = threading.Event()
    go_on = threading.Event()

    def set(self, *args: Any, **kwargs: Any) -> Any:
        self.reached.set()
        self.go_on.wait(PATIENCE)
        return super().set(*args, **kwargs)


def fork_while_invalidating() -> None:
    """Fork while a thread writes to the cache, and let the child do the same."""
    thread = threading.Thread(target=_save, args=("thread",))
    thread.start()
    assert Held.reached.wait(PATIENCE)
    child = _fork(lambda: (Held.go_on.set(), _work("child")))
    Held.go_on.set()
    thread.join()
    _print_outcomes([child])


def fork_in_batch(how: str) -> None:
    """Fork with an upload under way and a delete noted; the child leaves as `how`.

    The child may not use the batch, and uses the storage instead.
    """
    _save("old")
    is_child = False
    children = []
    try:
        with staticfiles_storage.batch() as batch:
            _save("first", batch)  # It is sent alone, because its ETag is examined.
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
    """Use the storage, and then be a gunicorn of several workers that inherit it."""
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
                if key in self.cfg.settings:  # Not all versions know all of them.
                    self.cfg.set(key, value)

        def load(self) -> Any:
            return application

    Gunicorn().run()


def _work(name: str) -> None:
    """Save and ask, and see to it that each answer is to this question."""
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
    """A content that no other name has, of a length that few have."""
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
