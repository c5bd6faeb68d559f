"""Writes OCI image layouts: real images of a few layers, for clients to push."""

import gzip
import hashlib
import io
import json
import tarfile
from pathlib import Path
from random import Random
from typing import Any

INDEX = "application/vnd.oci.image.index.v1+json"
MANIFEST = "application/vnd.oci.image.manifest.v1+json"
CONFIG = "application/vnd.oci.image.config.v1+json"
LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"


def write(root: Path, layer_sizes: list[int], architectures: list[str], seed: int = 0) -> None:
    """Write an image of random files, tagged ``v1``; with several architectures, an index."""
    random = Random(seed)
    (root / "blobs" / "sha256").mkdir(parents=True)
    (root / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    layers = [_layer(random.randbytes(size)) for size in layer_sizes]
    images = [_image(root, layers, architecture) for architecture in architectures]
    tagged = images[0]
    if len(images) > 1:
        tagged = _blob(root, _json(schemaVersion=2, mediaType=INDEX, manifests=images), INDEX)
    tagged |= {"annotations": {"org.opencontainers.image.ref.name": "v1"}}
    (root / "index.json").write_bytes(_json(schemaVersion=2, mediaType=INDEX, manifests=[tagged]))


def _layer(content: bytes) -> bytes:
    tar = io.BytesIO()
    with tarfile.open(fileobj=tar, mode="w") as archive:
        info = tarfile.TarInfo("file")
        info.size = len(content)
        archive.addfile(info, io.BytesIO(content))
    return tar.getvalue()


def _image(root: Path, layers: list[bytes], architecture: str) -> dict[str, Any]:
    diff_ids = [f"sha256:{hashlib.sha256(layer).hexdigest()}" for layer in layers]
    config = _json(
        architecture=architecture,
        os="linux",
        config={},  # Charliecloud fails without this, and without a history
        history=[{"created": "2026-01-01T00:00:00Z", "created_by": "nobody"} for _ in layers],
        rootfs={"type": "layers", "diff_ids": diff_ids},
    )
    manifest = _json(
        schemaVersion=2,
        mediaType=MANIFEST,
        config=_blob(root, config, CONFIG),
        layers=[_blob(root, gzip.compress(layer, 1, mtime=0), LAYER) for layer in layers],
    )
    return _blob(root, manifest, MANIFEST) | {
        "platform": {"architecture": architecture, "os": "linux"}
    }


def _blob(root: Path, content: bytes, media_type: str) -> dict[str, Any]:
    encoded = hashlib.sha256(content).hexdigest()
    (root / "blobs" / "sha256" / encoded).write_bytes(content)
    return {"mediaType": media_type, "digest": f"sha256:{encoded}", "size": len(content)}


def _json(**content: Any) -> bytes:
    return json.dumps(content, indent=2).encode()
