"""Request targets that are hard to route: valid ones, and almost valid ones."""

from collections.abc import Iterator
from random import Random
from typing import NamedTuple
from urllib.parse import quote

from hypothesis import settings

SHA256 = "sha256:" + "0123456789abcdef" * 4
SHA512 = "sha512:" + "0123456789abcdef" * 8


def examples(quick: int) -> settings:
    """Return the settings of a slow property: `quick` examples, or a third of the thorough ones."""
    usual = settings().max_examples
    return settings(max_examples=usual // 3 if usual > 100 else quick)


class Values(NamedTuple):
    """Values of one kind."""

    valid: list[str]
    malformed: list[str]

    def one(self, random: Random) -> str:
        """One of them, mostly a valid one."""
        return random.choice(self.valid if random.random() < 0.8 else self.all)

    @property
    def all(self) -> list[str]:
        return self.valid + self.malformed


COMPONENTS = Values(
    valid=[
        *("a", "0", "library", "nginx", "a.b", "a_b", "a__b", "a-b", "a--b", "a---b", "x" * 300),
        *("v2", "manifests", "blobs", "uploads", "tags", "list", "referrers", "latest", "catalog"),
    ],
    malformed=[
        *("A", "a..b", "a___b", "a.-b", "a_-b", "-a", "a-", ".a", "a.", "_a", "a_", "a+b", "a b"),
        *("_catalog", "_oci", "localhost:5000", "é", "٣", "\uff41", "a\n", "a\x00", "a\\b"),
        *("a%2fb", "ß"),
    ],
)
TAGS = Values(
    valid=["latest", "1.0", "_x", "A-Z.z_0", "list", "uploads", "t" * 128, "x.."],
    malformed=[
        *("t" * 129, ".x", "-x", "", "a b", "a+b", "été", "latest\n", "\nlatest", "٣", "a:b"),
        *("..x", "a%0a", "…"),
    ],
)
DIGESTS = Values(
    valid=[SHA256, SHA512, "md5:abc", "a+b.c-d_e:A=_-", "sha256+b64:abc=", "sha384:00"],
    malformed=[
        *(SHA256[:-1], SHA256 + "0", SHA256.upper(), SHA256.replace("a", "A"), SHA256 + "\n"),
        *(SHA512[:-1], SHA512 + "0", "sha512:" + SHA256[7:], "sha256:" + SHA512[7:], "sha256:"),
        *(":abc", "a:", "a:b:c", "a:b.c", "A:b", "a++b:c", "+a:b", "a+:b", "sha256", "sha256:٣"),
        "é:a",
    ],
)
UPLOAD_IDS = Values(
    valid=[
        *("b8e1d5ae-3d4a-4e30-9b3f-6e4bd0a4b0d1", "RDk1_-==", "=", "-", "_", "a.b", "a.."),
        *("uploads", "latest", "x" * 500),
    ],
    malformed=[*(SHA256, ".a", "...", "a+b", "a:b", "a b", "不", "a\n", "\x00", "a\\b", "")],
)
EXTENSIONS = Values(
    valid=[
        *("oci", "a.b", "a-b_c", "0", "tags", "list", "manifests", "blobs", "uploads", "catalog"),
        "ext",
    ],
    malformed=["", "A", "a--b", "a.", "_a", "a:b", "é", "a\n"],
)
METHODS = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]
QUERIES = ["", "", "", "?n=10&last=x", "?digest=sha256%3Aabc", "?mount=sha256:a&from=a/b", "?"]


def name(random: Random) -> str:
    length = random.choice([1, 1, 2, 2, 3, 6, 12])
    return "/".join(COMPONENTS.one(random) for _ in range(length))


def tail(random: Random) -> str:
    """What comes after a repository name."""
    tag = TAGS.one(random)
    digest = DIGESTS.one(random)
    upload_id = UPLOAD_IDS.one(random)
    extension = "/".join(EXTENSIONS.one(random) for _ in range(3))
    route = [
        *(f"manifests/{tag}", f"manifests/{digest}", "tags/list", f"blobs/{digest}"),
        f"manifests/{tag}",
        *("blobs/uploads/", f"blobs/uploads/{upload_id}", f"referrers/{digest}", f"_{extension}"),
    ]
    if random.random() < 0.8:
        return random.choice(route)
    return random.choice(
        [
            *("blobs/uploads", f"referrers/{tag}", f"blobs/{tag}", "_oci", "_oci/ext"),
            *("manifests/", "tags", "tags/", "tags/list/x", "manifests", ""),
            f"uploads/{upload_id}",
        ]
    )


def mutated(random: Random, path: str) -> str:
    """`path` with something inserted, removed or doubled."""
    at = random.randrange(len(path) + 1)
    slash = random.choice([i for i, char in enumerate(path) if char == "/"] or [at])
    return random.choice(
        [
            path + "/",
            path + "//",
            path.rstrip("/"),
            "/" + path,
            path[:slash] + "/" + path[slash:],
            path[:slash] + "/." + path[slash:],
            path[:slash] + "/.." + path[slash:],
            path[:slash] + "/x/.." + path[slash:],
            path[:at] + random.choice("/.:_-\\\n\x00é٣%A") + path[at:],
            path[:at] + path[at + 1 :],
            path + random.choice(["\n", "\x00", " ", "/.", "/..", "\\", "%2f", "é"]),
            path.swapcase(),
        ]
    )


def encoded(random: Random, path: str) -> str:
    """`path` percent-encoded, and now and then more than it needs to be."""
    if random.random() < 0.8:
        return quote(path, safe="/:=+,;@$&'()*!")
    return "".join(
        char
        if char.isascii() and char.isalnum() and random.random() < 0.8
        else quote(char, safe=safe)
        for char in path
        for safe in [random.choice(["/:=+_.-", ""])]
    ).replace(".", random.choice([".", "%2e"]))


def target(random: Random, prefix: str = "") -> str:
    """One request target."""
    head = random.choice([f"{name(random)}/"] * 9 + [""])
    path = f"{prefix}/v2/{head}{tail(random)}"
    if random.random() < 0.05:
        path = prefix + random.choice(["/v2/", "/v2", "/v2/_catalog", "/", "", "/v2/_catalog/x"])
    while random.random() < 0.25:
        path = mutated(random, path)
    if not path.startswith("/"):
        path = f"/{path}"
    return encoded(random, path) + random.choice(QUERIES)


def requests(seed: int, count: int, prefix: str = "") -> Iterator[tuple[str, str]]:
    """`count` pairs of a target and a method, the same ones for the same seed."""
    random = Random(seed)
    for _ in range(count):
        yield target(random, prefix), random.choice([*METHODS, "GET", "GET", "GET", "PUT", "POST"])
