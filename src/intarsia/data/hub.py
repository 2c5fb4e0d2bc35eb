"""Names on the Hugging Face Hub: refused at once where they cannot be had.

The Hub's own client tries each file of a name several times, for a minute without a network.
"""

from __future__ import annotations

import difflib
import os
import socket
import threading
from collections.abc import Iterable
from pathlib import Path
from urllib.parse import urlsplit

from intarsia.core.errors import AssetError

SECONDS = 3.0  # for one connection, names of hosts included
PROXIES = ("https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY")


def check_reachable(name: str, *, what: str, want: str, local_names: Iterable[str] = ()) -> None:
    """Check that a model's name may be had from the Hub: it is in the cache, or the Hub answers.

    local_names: names that need no Hub; the nearest are suggested, as are folders that are here.
    Raises: AssetError for a path where nothing is, a name that is not in the cache with
    HF_HUB_OFFLINE set, and a Hub that does not answer in 3 s.
    """
    from huggingface_hub import constants  # seconds to import with its dependencies

    if Path(name).exists() or _cached_repository(constants.HF_HUB_CACHE, name).is_dir():
        return
    # No name on the Hub looks like this: it is a path that does not exist.
    if name.count("/") > 1 or name.startswith((".", "/", "~")):
        got, fix = "nothing there", "Check the path."
    elif constants.HF_HUB_OFFLINE:
        got, fix = "no such folder, and a name that is not in the cache", "Unset HF_HUB_OFFLINE."
    elif error := _why_unreachable(constants.ENDPOINT):
        got, fix = f"no such folder, and no way to the Hub ({error})", "Check the name."
    else:
        return
    names = [*local_names, *(path.name for path in Path().iterdir() if path.is_dir())]
    if near := difflib.get_close_matches(name, names, n=3):
        fix = f"Did you mean {' or '.join(near)}?"
    raise AssetError(what, got=got, want=want, fix=fix)


def _cached_repository(root: str, name: str) -> Path:
    return Path(root, f"models--{name.replace('/', '--')}")


def _why_unreachable(endpoint: str) -> str:
    """Return why an address cannot be reached, as the system says it; "" = it can."""
    # Behind a proxy the proxy is what must answer.
    proxy = next((os.environ[name] for name in PROXIES if os.environ.get(name)), endpoint)
    url = urlsplit(proxy if "//" in proxy else f"//{proxy}")
    address = url.hostname or "", url.port or (80 if url.scheme == "http" else 443)
    errors = [f"no answer in {SECONDS:g} s"]

    def connect() -> None:
        """Connect once, and note the error if that fails."""
        try:
            socket.create_connection(address, SECONDS).close()
            errors.clear()
        except OSError as error:
            errors[:] = [str(error)]

    # in a thread, since looking up the name of a host has no limit of time
    attempt = threading.Thread(target=connect, daemon=True)
    attempt.start()
    attempt.join(SECONDS)
    return next(iter(errors), "")
