"""python fetch.py: put NiiVue beside this file, in the version and with the hash that package-lock.json pins.

The Makefile and the Dockerfile run it. Without a network, everything but viewer pages works.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import os
import pathlib
import sys
import tarfile
import urllib.request

HERE = pathlib.Path(__file__).resolve().parent
PACKAGE = "@niivue/niivue"
MEMBER, TARGET = "package/dist/niivue.umd.js", HERE / "niivue.umd.js"
STAMP = HERE / "niivue.integrity"  # of the package that the file came from
REGISTRY = os.environ.get("NPM_CONFIG_REGISTRY", "https://registry.npmjs.org")


def main() -> None:
    """Fetch, compare the hash, unpack one file; nothing if that was done before."""
    pinned = json.loads((HERE / "package-lock.json").read_text())["packages"][f"node_modules/{PACKAGE}"]
    integrity = pinned["integrity"]
    if TARGET.exists() and STAMP.exists() and STAMP.read_text() == integrity:
        return
    name = PACKAGE.rpartition("/")[2]
    address = f"{REGISTRY.rstrip('/')}/{PACKAGE}/-/{name}-{pinned['version']}.tgz"
    with urllib.request.urlopen(address, timeout=60) as answer:  # noqa: S310 (of the registry above)
        package = answer.read()
    algorithm, _, wanted = integrity.partition("-")
    found = base64.b64encode(hashlib.new(algorithm, package).digest()).decode()
    if found != wanted:
        sys.exit(f"{address}: {algorithm} is {found}, package-lock.json has {wanted}; nothing was written")
    with tarfile.open(fileobj=io.BytesIO(package)) as archive:
        content = archive.extractfile(MEMBER)
        assert content is not None
        TARGET.write_bytes(content.read())
    STAMP.write_text(integrity)


if __name__ == "__main__":
    main()
