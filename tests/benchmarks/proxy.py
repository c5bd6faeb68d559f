"""The speed of the example proxy, compared with its upstream and with Debian's ``docker-registry``.

    python -m tests.benchmarks.proxy [--layers N] [--layer MIB] [--rounds N] [--clients N]

The upstream is the example registry. Each round pushes a new image, pulls it once through each cache,
and then five times from the upstream itself and through the caches, in turns. Debian's cache is Go
distribution with its ``proxy:`` section. A pull is a single `curl` for the manifest, by its tag, and
all layers. The best round counts; compare the ratios. All run on the same machine and disk.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import requests

from registry_routes import URLBuilder
from registry_routes.digests import digest_of
from registry_routes.headers import ACCEPT_MANIFESTS, IMAGE_MANIFEST

from ..servers import EXAMPLES, debians_registry, free_port, serving

UPSTREAM, OURS, DEBIANS = "the upstream itself", "examples/proxy.py", "docker-registry"


def push_image(root: str, name: str, layers: int, size: int) -> list[str]:
    """Push an image of random layers. Return the paths of its manifest and of its blobs."""
    urls, paths, descriptors = URLBuilder(root), URLBuilder("/", relative=True), []
    for content in (b"{}", *(os.urandom(size) for _ in range(layers))):
        digest = digest_of(content)
        url = urls.blob_upload(name, digest=digest)
        requests.post(url, content, timeout=60).raise_for_status()
        descriptors.append({"mediaType": "a/b", "digest": digest, "size": len(content)})
    manifest = {"schemaVersion": 2, "config": descriptors[0], "layers": descriptors[1:]}
    url, headers = urls.manifest(name, "latest"), {"Content-Type": IMAGE_MANIFEST}
    requests.put(url, json.dumps(manifest), headers=headers, timeout=60).raise_for_status()
    blobs = [paths.blob(name, str(descriptor["digest"])) for descriptor in descriptors]
    return [paths.manifest(name, "latest"), *blobs]


def time_pull(root: str, paths: list[str], clients: int) -> float:
    """Return the seconds until this number of clients have pulled, all at the same time."""
    command = ["curl", "-sSf", "-H", f"Accept: {ACCEPT_MANIFESTS}"]
    for path in paths:
        command += ["-o", os.devnull, root + path]
    begun = time.perf_counter()
    with ThreadPoolExecutor(clients) as pool:
        list(pool.map(lambda _: subprocess.run(command, check=True), range(clients)))
    return time.perf_counter() - begun


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.proxy")
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--layer", type=int, default=16, help="MiB of each layer")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--clients", type=int, default=8, help="clients at once, next to a single client"
    )
    options = parser.parse_args()
    if not shutil.which("curl"):
        sys.exit("curl is not installed")
    compare(options.layers, options.layer, options.rounds, options.clients)


def compare(layers: int = 8, layer: int = 16, rounds: int = 3, many: int = 8) -> None:
    """Print the times of pulls, by one client and by `many` at once. `layer` is in MiB."""
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))

        def serve(name: str, *more: str) -> str:
            port = free_port()
            command = [sys.executable, str(EXAMPLES / f"{name}.py"), "--port", str(port)]
            command += ["--storage", str(directory / name), *more]
            return "http://" + stack.enter_context(
                serving(command, port, directory / f"{name}-log")
            )

        upstream = serve("registry")
        caches = {OURS: serve("proxy", "--upstream", upstream)}
        if shutil.which(DEBIANS):
            (directory / "debians").mkdir()
            proxied = debians_registry(directory / "debians", proxy={"remoteurl": upstream})
            caches[DEBIANS] = "http://" + stack.enter_context(proxied)
        else:
            print(f"{DEBIANS} is not installed: it takes no part")
        best: dict[tuple[int, str], float] = {}
        for number in range(rounds):
            for clients in 1, many:
                name = f"r{number}/c{clients}"
                size = layer * 2**20
                paths = push_image(upstream, name, layers, size)
                first = [(f"{who}, first pull", root) for who, root in caches.items()]
                later = [(f"{who}, later pull", root) for who, root in caches.items()]
                for who, root in [*first, *([(UPSTREAM, upstream), *later] * 5)]:
                    took = time_pull(root, paths, clients)
                    best[clients, who] = min(took, best.get((clients, who), took))
                    if (who, root) in first:
                        time.sleep(2)  # until the cache has kept everything
        total = layers * layer
        for clients in 1, many:
            print(f"\n{total} MiB in {layers} layers, {clients} at once")
            for (number, who), took in best.items():
                if number == clients:
                    ratio = took / best[clients, UPSTREAM]
                    print(f"{who:<32}{took * 1000:>8,.0f} ms{ratio:>8.2f} of the upstream's time")


if __name__ == "__main__":
    main()
