"""Threads may match and build routes without a lock while another adds rules to the map."""

import sys
import threading

from werkzeug.routing import Rule

from registry_routes import RegistryMap

from .wsgi import environ_for


def test_many_threads_match_and_build_while_rules_are_added() -> None:
    url_map = RegistryMap()
    errors: list[BaseException] = []
    done = threading.Event()

    def match() -> None:
        try:
            while not done.is_set():
                adapter = url_map.bind_to_environ(environ_for("/v2/a/b/tags/list"))
                assert adapter.match() == ("tags", {"name": "a/b"})
                assert adapter.match("/v2/x/blobs/uploads/1", "PUT")[0] == "blob-upload-chunk"
                assert adapter.build("tags", {"name": "a"}) == "/v2/a/tags/list"
        except BaseException as error:
            errors.append(error)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    threads = [threading.Thread(target=match) for _ in range(8)]
    try:
        for thread in threads:
            thread.start()
        for i in range(60):
            url_map.add(Rule(f"/v2/added-{i}", endpoint=f"added-{i}"))
    finally:
        done.set()
        for thread in threads:
            thread.join()
        sys.setswitchinterval(interval)
    assert not errors, errors[0]
    assert url_map.bind("h").match("/v2/added-59") == ("added-59", {})
