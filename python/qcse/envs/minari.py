"""Minari datasets on this machine and the environments that they were recorded in (`minari:ID`)."""

from __future__ import annotations

import copy
import dataclasses
import json
import os
import re
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium
from gymnasium.envs.registration import EnvSpec

from ..errors import DatasetError, TrustError
from ..files import check_regular
from . import trust

METADATA_BYTES = 16 << 20
OPTIONS_BYTES = 100_000  # of an environment's options as JSON
MAX_EPISODE_STEPS = 10**9


def library() -> Any:
    try:
        import minari
    except ImportError as error:
        raise DatasetError(
            f"dataset: Minari datasets are fetched and written by Minari's library ({error}); "
            "pip install 'qcse[minari]'"
        ) from error
    return minari


def datasets_folder() -> Path:
    """Where Minari keeps datasets."""
    named = os.environ.get("MINARI_DATASETS_PATH")
    return Path(named) if named else Path.home() / ".minari" / "datasets"


@dataclass(frozen=True)
class StoredDataset:
    """A dataset on this machine.

    Attributes:
        name: "minari:ID".
        folder: with metadata.json and the arrays.
        metadata: content of metadata.json, not checked.
    """

    name: str
    folder: Path
    metadata: dict[str, Any]

    def file(self, name: str) -> Path:
        """A file of the dataset, in its own folder."""
        path = self.folder / name
        check_regular(path)
        if not path.resolve().is_relative_to(self.folder.resolve()):
            raise DatasetError(
                f"dataset: {self.name}: {path} leads out of its folder, to {path.resolve()}; copy it there"
            )
        return path

    @property
    def spec(self) -> dict[str, Any] | None:
        """The environment's specification as it is stored, with an id; nothing else in it is checked."""
        text = self.metadata.get("env_spec")
        if text is None:
            return None
        try:
            spec = json.loads(text)
            if isinstance(spec, dict) and isinstance(spec["id"], str):
                return spec
            problem = "no id"
        except (TypeError, ValueError, KeyError, RecursionError) as error:
            problem = f"{type(error).__name__}: {error}"
        raise DatasetError(f"dataset: {self.name} has an env_spec that cannot be read ({problem[:200]}); give --env")


def find_stored(dataset_id: str) -> StoredDataset:
    """A Minari dataset: the local one if it is there, else fetched by Minari's library.

    Raises:
        DatasetError: there is no such dataset here and none can be fetched, or its metadata cannot be read.
    """
    check_name(dataset_id)
    folder = datasets_folder() / dataset_id / "data"
    if not folder.exists():
        _fetch(dataset_id)
    stored = StoredDataset(f"minari:{dataset_id}", folder, {})
    path = stored.file("metadata.json")
    if path.stat().st_size > METADATA_BYTES:
        raise DatasetError(f"dataset: {path} has {path.stat().st_size:,} bytes; expected up to {METADATA_BYTES:,}")
    try:
        metadata = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise DatasetError(f"dataset: {path} is not valid JSON ({error}); fetch the dataset again") from error
    if not isinstance(metadata, dict):
        raise DatasetError(f"dataset: {path} holds {type(metadata).__name__}; expected an object; fetch it again")
    return dataclasses.replace(stored, metadata=metadata)


def _fetch(dataset_id: str) -> None:
    minari = library()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about versions of environments, which data does not choose
            minari.storage.hosting.download_dataset(dataset_id)
    except Exception as error:  # the library and its network clients raise kinds without a common base
        folder = datasets_folder()
        local = ", ".join(sorted(str(path.parent.relative_to(folder)) for path in folder.rglob("data"))) or "none"
        raise DatasetError(
            f"dataset: minari:{dataset_id} is neither stored locally nor could it be fetched "
            f"({type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no reason given'}); stored "
            f"locally: {local}. `minari list remote` shows what can be fetched; where there is no network, copy the "
            f"dataset's folder into {folder} ($MINARI_DATASETS_PATH names another)"
        ) from error


def check_name(dataset_id: str) -> None:
    if re.fullmatch(r"([-\w]+/)*[-\w]+-v\d+", dataset_id) is None:
        raise DatasetError(
            f"dataset: minari:{dataset_id} is not a name of Minari's; expected NAME-vNUMBER, with or without folders, "
            "such as minari:mujoco/hopper/medium-v0"
        )


def recorded_name(dataset_id: str) -> str:
    """Name of the environment that a dataset was recorded in, "" where it names none."""
    spec = find_stored(dataset_id).spec
    return spec["id"] if spec else ""


def environment_spec(dataset_id: str) -> EnvSpec:
    """The environment that a dataset was recorded in, with its options (such as the maze).

    A dataset may name any function of any module as its environment, so nothing of what it says is executed: the
    specification is the one that this installation registers for the dataset's id, with the dataset's options and its
    time limit, where it has one. What differs otherwise is refused, unless the user trusts it (`trust`).

    Raises:
        DatasetError: the dataset names none, or one that cannot be read.
        TrustError: it names another entry point, other wrappers, or options that are not plain data.
    """
    stored = find_stored(dataset_id)
    raw = stored.spec
    if raw is None:
        raise DatasetError(f"dataset: {stored.name} does not say which environment it is of; give --env")
    registered = gymnasium.registry.get(raw["id"])
    limit = raw.get("max_episode_steps")
    if limit is not None and not (type(limit) is int and 0 < limit <= MAX_EPISODE_STEPS):
        raise DatasetError(
            f"dataset: {stored.name} has the time limit {limit!r}; expected a number of steps; give --env"
        )
    if trust.trusts_env_specs():
        spec = _spec_as_stored(stored, raw)
    else:
        spec = _registered_spec(stored, raw, registered)
    spec.max_episode_steps = limit or (registered.max_episode_steps if registered is not None else None)
    return spec


def _spec_as_stored(stored: StoredDataset, raw: dict[str, Any]) -> EnvSpec:
    known = {field.name for field in dataclasses.fields(EnvSpec) if field.init}  # other versions have others
    try:
        return EnvSpec.from_json(json.dumps({"additional_wrappers": []} | {k: v for k, v in raw.items() if k in known}))
    except Exception as error:  # gymnasium's own errors, and those of types that are not what it expects
        raise DatasetError(
            f"dataset: {stored.name} has an env_spec that cannot be used ({error}); give --env"
        ) from error


def _registered_spec(stored: StoredDataset, raw: dict[str, Any], registered: EnvSpec | None) -> EnvSpec:
    """This installation's specification for the stored id, with the stored options; TrustError where others differ."""
    entry, name = raw.get("entry_point"), raw["id"]

    def refused(what: str) -> TrustError:
        return TrustError(
            f"env: {stored.name} was recorded in {name!r} with the entry point {entry!r}, {what}. It is not executed: "
            f"name the environment with --env, or give {trust.SWITCH} if you know what that runs"
        )

    if registered is None:
        raise refused("and this installation registers no environment of that name")
    if entry != registered.entry_point:
        raise refused(f"and this installation registers {registered.entry_point!r} for that name")
    wrappers = raw.get("additional_wrappers") or []
    if wrappers != [dataclasses.asdict(wrapper) for wrapper in registered.additional_wrappers]:
        raise refused(f"inside wrappers that are not registered with it: {str(wrappers)[:300]}")
    options = raw.get("kwargs") or {}
    if not isinstance(options, dict) or len(json.dumps(options)) > OPTIONS_BYTES:
        raise refused("and options that are no short table")
    options = {option: value for option, value in options.items() if option != "render_mode"}  # nobody looks
    for option, value in options.items():
        if value != registered.kwargs.get(option) and not _is_data(value):
            raise refused(f"and the option {option} = {str(value)[:300]!r}, which may be a file or code")
    spec = copy.deepcopy(registered)
    spec.kwargs = {**registered.kwargs, **options}
    return spec


def _is_data(value: Any, depth: int = 4) -> bool:
    """Numbers, and words that name neither a file nor something to import, in lists and tables of such."""
    if depth == 0:
        return False
    if isinstance(value, str):
        return re.fullmatch(r"[\w -]{0,100}", value) is not None
    if isinstance(value, dict):
        return all(_is_data(key) and _is_data(item, depth - 1) for key, item in value.items())
    if isinstance(value, list):
        return all(_is_data(item, depth - 1) for item in value)
    return value is None or isinstance(value, bool) or (isinstance(value, int | float) and abs(value) <= 1e9)
