"""What a compiled kernel was made from: the key under which numba keeps it on disk.

numba looks at the file of the outermost function alone: a kernel would outlive a change of the pieces in other files,
and the next run would compute with the old ones. An argument that is always left out belongs to the signature with its
default, and so to the key; a kernel's is `sources`, the fingerprint of the files that it was made from.
"""

from functools import cache
from hashlib import sha256
from pathlib import Path


@cache
def fingerprint(*files: str) -> int:
    """A hash of Python files, with those of this folder; a folder stands for the files in it.

    >>> from causal_circuits import graphs
    >>> fingerprint() == fingerprint(), fingerprint() == fingerprint(graphs.__file__)
    (True, False)
    """
    paths = [Path(__file__).parent, *map(Path, files)]
    found = sorted({path for given in paths for path in (given.glob("*.py") if given.is_dir() else [given])})
    return int(sha256(b"\0".join(path.read_bytes() for path in found)).hexdigest()[:12], 16)
