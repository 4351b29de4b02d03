"""What may be imported: a name in somebody else's data or run folder must not become code.

An environment's name with a module ("module:Name-v0"), or an entry point in a Minari dataset, is code once it is
imported. From the command line it is. From a data file it is not, and from a run folder only where this user's own
command started the run: such a folder holds a mark, made with a key that lies in this user's configuration folder.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import os
import secrets
import stat
import tempfile
from pathlib import Path

from ..errors import TrustError
from ..files import atomic_path
from .names import is_code

SWITCH = "--trust-env-spec"
MARK = "origin"  # file in a run folder
KEY_BYTES = 32

_log = logging.getLogger(__name__)
_all = False  # the switch was given
_named: set[str] = set()


def from_command_line(all_specs: bool, env_id: str | None = None) -> None:
    """For the rest of this process.

    Args:
        all_specs: --trust-env-spec was given: import what data and run folders name.
        env_id: an environment that the user named, whose module is vouched for.
    """
    global _all
    _all = _all or all_specs
    if env_id:
        _named.add(env_id)


def trusts_env_specs() -> bool:
    """Whether --trust-env-spec was given."""
    return _all


def check_data(env_id: str, source: str) -> None:
    """TrustError where data name an environment that is code, unless the user named it too, or gave the switch."""
    if is_code(env_id) and not _all and env_id not in _named:
        raise TrustError(
            f"env: {source} names {env_id!r}, which would import the module {env_id.rpartition(':')[0]!r}; data must "
            f"not choose what is executed. If you know that module, name it yourself with --env, or give {SWITCH}"
        )


def mark_run(folder: Path, env_id: str) -> None:
    """Note in a run folder that this user started it with this environment; where there is no key, nothing."""
    if not is_code(env_id) or (_all and env_id not in _named):
        return
    key = _key(create=True)
    if key is not None:
        with atomic_path(folder / MARK) as temporary:
            temporary.write_text(_mark(key, env_id) + "\n", encoding="utf-8")


def check_run(folder: Path, env_id: str) -> None:
    """TrustError where a run folder's environment is code and this user did not start the run.

    It is believed where the folder has this user's mark, the user named the same environment, or gave the switch.
    """
    if not is_code(env_id) or _all or env_id in _named:
        return
    path, key, found = folder / MARK, _key(create=False), b""
    if path.is_file():
        with open(path, "rb") as file:
            found = file.read(1000).strip()
    if key is None or not hmac.compare_digest(found, _mark(key, env_id).encode()):
        raise TrustError(
            f"env: the run folder {folder} names {env_id!r}, which would import the module "
            f"{env_id.rpartition(':')[0]!r}, and nothing shows that this user started that run. If you know that "
            f"module, name it beside --resume with --env {env_id}, or give {SWITCH}"
        )


def _mark(key: bytes, env_id: str) -> str:
    return hmac.new(key, b"qcse run\0" + env_id.encode("utf-8", "surrogateescape"), hashlib.sha256).hexdigest()


def _key_path() -> Path | None:
    named = os.environ.get("XDG_CONFIG_HOME", "")
    try:
        return (Path(named) if Path(named).is_absolute() else Path.home() / ".config") / "qcse" / "key"
    except RuntimeError:  # this user has no home folder
        return None


def _key(create: bool) -> bytes | None:
    """This user's key, made at its first use; None where there is none, and none can be made."""
    path = _key_path()
    if path is None:
        return None
    try:
        if create and not path.exists():
            _make_key(path)
        facts = path.lstat()
        if not stat.S_ISREG(facts.st_mode):
            return None
        if os.name == "posix" and (facts.st_uid != os.geteuid() or facts.st_mode & 0o077):
            _log.warning("%s may be read by others, so marks made with it prove nothing; delete it", path)
            return None
        key = path.read_bytes()
    except OSError:  # no such file, or a home folder that cannot be read or written: the run goes on without a mark
        return None
    return key if len(key) == KEY_BYTES else None


def _make_key(path: Path) -> None:
    """A random key at `path`, whole or not at all, readable by this user alone; another process's is kept."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    handle, name = tempfile.mkstemp(prefix=".key.", dir=path.parent)  # of mode 0600
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(secrets.token_bytes(KEY_BYTES))
            file.flush()
            os.fsync(file.fileno())
        try:
            os.link(name, path)
        except FileExistsError:  # two runs started at once
            return
        except OSError:  # a file system without links
            os.replace(name, path)
    finally:
        Path(name).unlink(missing_ok=True)
