"""Every way by which data and folders of unknown origin may want to execute code, read other files, or take all memory.

Each is a command as a user would give it, in a process of its own with 6 GiB of addresses and 60 seconds. What must not
be imported or executed leaves a file behind; what must not be opened is a named pipe, at which a reader hangs.
"""

from __future__ import annotations

import io
import json
import os
import pickle
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import hostile_files
import pytest
import torch
from support import QUICK

SECONDS, GIGABYTES, PEAK = 60, 6.0, 2 << 30
LEARN = ["--offline-steps", "2", "--online-steps", "0", "--algo", "cql", "--out", "run", *map(str, QUICK)]
Way = tuple[list[str], str]  # the command's words, and what it must say; "" where it must succeed

# Made once: a run of Hopper, and a Minari dataset; each way gets copies.


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("parts")
    hostile_files.good(folder / "good.hdf5")
    words = ["train", "--env", "Hopper-v5", "--algo", "sac", "--out", "run", "--offline-steps", "0"]
    words += ["--online-steps", "6", "--learning-starts", "2", "--random-steps", "2"]
    run = subprocess.run(
        [sys.executable, "-P", "-m", "qcse", *words, *map(str, QUICK)], cwd=folder, capture_output=True
    )
    assert run.returncode == 0, run.stderr
    return folder


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[subprocess.Popen[str]]:
    home = tmp_path_factory.mktemp("home")
    environment = os.environ | {
        "HOME": str(home), "XDG_CONFIG_HOME": str(home), "MINARI_DATASETS_PATH": "minari", "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join([*filter(None, [os.environ.get("PYTHONPATH")]), "."]), "no_proxy": "*",
        "HF_HUB_OFFLINE": "1",
    }  # fmt: skip
    with subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("ways_in_server.py"))],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment,
    ) as process:  # fmt: skip
        yield process
        assert process.stdin is not None
        process.stdin.close()


def minari_set(folder: Path, parts: Path, **changes: Any) -> Path:
    """A Minari dataset some/set-v0 of Hopper in `folder`; changes: of its environment, or (capitals) metadata."""
    data = folder / "minari" / "some" / "set-v0" / "data"
    data.mkdir(parents=True)
    with h5py.File(parts / "good.hdf5") as source, h5py.File(data / "main_data.hdf5", "w") as file:
        group, n = file.create_group("episode_0"), hostile_files.N
        group["observations"] = [*source["observations"][()], source["next_observations"][-1]]
        group["actions"], group["rewards"] = source["actions"][()], source["rewards"][()]
        group["terminations"] = group["truncations"] = source["terminals"][()]
    spec = {"id": "Hopper-v5", "entry_point": "gymnasium.envs.mujoco.hopper_v5:HopperEnv", "kwargs": {}}
    metadata: dict[str, Any] = {
        "total_episodes": 1, "total_steps": n, "data_format": "hdf5", "dataset_id": "some/set-v0",
        "minari_version": "0.5.4", "observation_space": json.dumps({"type": "Box", "shape": [3]}),
        "action_space": json.dumps({"type": "Box", "shape": [2], "low": [-1, -1], "high": [1, 1]}),
    }  # fmt: skip
    spec |= {key: value for key, value in changes.items() if not key[0].isupper()}
    metadata |= {"env_spec": json.dumps(spec)} | {k.lower(): v for k, v in changes.items() if k[0].isupper()}
    path = data / "metadata.json"
    path.write_text(json.dumps({key: value for key, value in metadata.items() if value is not None}))
    return data


def evil_module(folder: Path) -> None:
    (folder / "evil_module.py").write_text("open('executed', 'w')\n")


def hdf5(make: Callable[[Path], Path], message: str) -> Callable[[Path, Path], Way]:
    def way(folder: Path, parts: Path) -> Way:
        make(folder / "data.hdf5")
        return ["data", "info", "data.hdf5"], message

    way.__name__ = f"hdf5 {make.__name__}"
    return way


def in_minari(message: str, **changes: Any) -> Callable[[Path, Path], Way]:
    def way(folder: Path, parts: Path) -> Way:
        minari_set(folder, parts, **changes)
        return ["train", "--dataset", "minari:some/set-v0", *LEARN], message

    way.__name__ = f"minari {' '.join(f'{key}={value}' for key, value in changes.items())[:60]}"
    return way


def in_config(
    message: str, command: tuple[str, ...] = ("train", "--resume"), begun: bool = True, **changes: Any
) -> Callable[[Path, Path], Way]:
    """A received run folder, whose configuration was changed; if not begun, it holds nothing else."""

    def way(folder: Path, parts: Path) -> Way:
        evil_module(folder)
        if begun:
            shutil.copytree(parts / "run", folder / "run")
        if str(changes.get("env", "")).startswith("minari:some"):
            minari_set(folder, parts, entry_point="os:system", kwargs={"command": "touch executed"})
        os.mkfifo(folder / "pipe")
        (folder / "run").mkdir(exist_ok=True)
        config = json.loads((parts / "run" / "config.json").read_text())
        for key, value in changes.items():
            config[key] = config[key] | value if isinstance(value, dict) else value
        (folder / "run" / "config.json").write_text(json.dumps(config))
        return [*command, "run"], message

    way.__name__ = f"config {' '.join(command)} {' '.join(f'{key}={value}' for key, value in changes.items())[:60]}"
    return way


def names_in_data(command: str) -> Callable[[Path, Path], Way]:
    def way(folder: Path, parts: Path) -> Way:
        evil_module(folder)
        shutil.copy(parts / "good.hdf5", folder / "data.hdf5")
        with h5py.File(folder / "data.hdf5", "r+") as file:
            file.attrs["env_id"] = "evil_module:Thing-v0"
        return [
            "data",
            command,
            "data.hdf5",
            *(["minari:a/b-v0"] if command == "convert" else []),
        ], "would import the module"

    way.__name__ = f"names in data, data {command}"
    return way


class Runs:
    """Its pickle runs a command."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch executed",)


def checkpoint_of(content: Callable[[], bytes]) -> Callable[[Path, Path], Way]:
    def way(folder: Path, parts: Path) -> Way:
        shutil.copytree(parts / "run", folder / "run")
        for name in ("checkpoint.pt", "checkpoint.previous.pt"):
            (folder / "run" / name).write_bytes(content())
        return ["eval", "run"], "checkpoint"

    way.__name__ = f"checkpoint {content.__name__}"
    return way


def a_pickle() -> bytes:
    return pickle.dumps(Runs())


def a_pickle_in_an_archive() -> bytes:
    content = io.BytesIO()
    torch.save({"format": 1, "config": Runs()}, content)
    return content.getvalue()


def an_archive_that_unpacks_to_gigabytes() -> bytes:
    content, packed = io.BytesIO(), io.BytesIO()
    torch.save({"format": 1, "x": torch.zeros(3)}, content)
    with zipfile.ZipFile(content) as source, zipfile.ZipFile(packed, "w") as target:
        folder = source.namelist()[0].split("/")[0]
        for name in source.namelist():
            if not name.endswith("/data/0"):
                target.writestr(name, source.read(name))
        assert target.fp is not None
        zeros = hostile_files.zeros_packed(3 << 30)[2:-4]
        entry = zipfile.ZipInfo(f"{folder}/data/0")
        entry.compress_type, entry.compress_size, entry.file_size = zipfile.ZIP_DEFLATED, len(zeros), 3 << 30
        entry.CRC = 0
        entry.header_offset = target.fp.tell()
        target.fp.write(entry.FileHeader() + zeros)
        target.filelist.append(entry)
        target.start_dir = target.fp.tell()
    return packed.getvalue()


def two_minari_folders_up(folder: Path, parts: Path) -> Way:
    return ["train", "--dataset", "minari:../../outside-v0", *LEARN], "is not a name of Minari's"


def minari_link_out(folder: Path, parts: Path) -> Way:
    data = minari_set(folder, parts)
    shutil.move(data / "main_data.hdf5", folder / "outside.hdf5")
    (data / "main_data.hdf5").symlink_to(folder / "outside.hdf5")
    return ["data", "info", "minari:some/set-v0"], "leads out of its folder"


def minari_external_link(folder: Path, parts: Path) -> Way:
    data = minari_set(folder, parts)
    os.mkfifo(folder / "pipe")
    with h5py.File(data / "main_data.hdf5", "r+") as file:
        del file["episode_0/rewards"]
        file["episode_0/rewards"] = h5py.ExternalLink(str(folder / "pipe"), "/x")
    return ["data", "info", "minari:some/set-v0"], "is a link to another file"


def minari_pipe(folder: Path, parts: Path) -> Way:
    data = minari_set(folder, parts)
    (data / "metadata.json").unlink()
    os.mkfifo(data / "metadata.json")
    return ["data", "info", "minari:some/set-v0"], "is a named pipe"


def minari_without_spaces(folder: Path, parts: Path) -> Way:
    """Minari's library makes the environment then, to ask it for them."""
    minari_set(folder, parts, Observation_space=None, entry_point="os:system", kwargs={"command": "touch executed"})
    return ["data", "info", "minari:some/set-v0"], "has no observation_space"


def minari_good(folder: Path, parts: Path) -> Way:
    minari_set(folder, parts)
    return ["data", "info", "minari:some/set-v0"], ""


def physics_of_states_elsewhere(folder: Path, parts: Path) -> Way:
    hostile_files.external_group(folder / "data.hdf5")
    return ["data", "check", "data.hdf5"], "is a link to another file"


def control_characters(command: str) -> Callable[[Path, Path], Way]:
    """Names that would clear the screen, or set the terminal's title."""

    def way(folder: Path, parts: Path) -> Way:
        shutil.copy(parts / "good.hdf5", folder / "data.hdf5")
        with h5py.File(folder / "data.hdf5", "r+") as file:
            file.attrs["env_id"], file.attrs["\x1b]0;title\x07"] = "\x1b[2J-v0", "\x1b[2J\nqcse data: all is well"
            file["\x1b[2J"] = 0
            if command == "check":
                del file["rewards"]
        return ["data", command, "data.hdf5"], "" if command == "info" else "keys found: \\x1b[2J"

    way.__name__ = f"control characters, data {command}"
    return way


def a_pipe_for_data(folder: Path, parts: Path) -> Way:
    os.mkfifo(folder / "pipe")
    return ["train", "--env", "Hopper-v5", "--dataset", "pipe", *LEARN], "is a named pipe"


def a_device_for_data(folder: Path, parts: Path) -> Way:
    return ["train", "--env", "Hopper-v5", "--dataset", "/dev/zero", *LEARN], "is a device"


def in_recording(message: str, **options: Any) -> Callable[[Path, Path], Way]:
    """A received recording that is to go on."""

    def way(folder: Path, parts: Path) -> Way:
        evil_module(folder)
        (folder / "a" / "x.collecting").mkdir(parents=True)
        (folder / "a" / "x.collecting" / "collect.json").write_text(json.dumps({"name": "x"} | options))
        return ["collect", "--resume", "a/x.collecting"], message

    way.__name__ = f"recording {options}"
    return way


def config_is_a_pipe(folder: Path, parts: Path) -> Way:
    (folder / "run").mkdir()
    os.mkfifo(folder / "run" / "config.json")
    return ["train", "--resume", "run"], "config.json"


def config_without_an_end(folder: Path, parts: Path) -> Way:
    (folder / "run").mkdir()
    with open(folder / "run" / "config.json", "wb") as file:
        file.write(b"[" * 1000)
        file.truncate(100 << 30)
    return ["eval", "run"], "config.json"


def config_deeply_nested(folder: Path, parts: Path) -> Way:
    (folder / "run").mkdir()
    (folder / "run" / "config.json").write_text('{"a":' * 100_000)
    return ["eval", "run"], "config.json"


def mark_is_a_device(folder: Path, parts: Path) -> Way:
    words, message = in_config("nothing shows that this user started", env="evil_module:Thing-v0")(folder, parts)
    (folder / "run" / "origin").symlink_to("/dev/zero")
    return words, message


def sweep_names_folders_outside(folder: Path, parts: Path) -> Way:
    (folder / "sweep.toml").write_text('envs = ["Hopper-v5"]\nalgos = ["sac"]\nbonuses = ["../../outside"]\n')
    return ["sweep", "--file", "sweep.toml", "--out", "a/sweep"], "bonuses"


def sweep_is_a_pipe(folder: Path, parts: Path) -> Way:
    os.mkfifo(folder / "sweep.toml")
    return ["sweep", "--file", "sweep.toml", "--out", "a/sweep"], "sweep.toml"


def script_in_a_report(folder: Path, parts: Path) -> Way:
    evil = '<script src="file:///executed"></script>'
    shutil.copytree(parts / "run", folder / "run")
    path = folder / "run" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"env": evil}))
    return ["report", "run", "--out", "page"], ""


WAYS: list[Callable[[Path, Path], Way]] = [
    hdf5(hostile_files.external_link, "is a link to another file"),
    hdf5(hostile_files.soft_link_out, "is a link to another file"),
    hdf5(hostile_files.dangling_link, "is a link to something that is not there"),
    hdf5(hostile_files.circular_links, "leads in a circle"),
    hdf5(hostile_files.external_storage, "is stored in another file"),
    hdf5(hostile_files.external_metadata, "is stored in another file"),
    hdf5(hostile_files.virtual, "is put together from other arrays"),
    hdf5(hostile_files.declared_chunked, "were never written"),
    hdf5(hostile_files.declared_contiguous, "were never written"),
    hdf5(hostile_files.sparse, "GB of memory"),
    hdf5(hostile_files.bomb, "as no recording does"),
    hdf5(hostile_files.bomb_in_a_chunk, "unpack to more than they hold"),
    hdf5(hostile_files.bomb_in_a_small_chunk, "larger than what they hold"),
    hdf5(hostile_files.chunk_beyond_its_array, "in chunks of"),
    hdf5(hostile_files.plugin, "with the filters"),
    hdf5(hostile_files.packed_twice, "with the filters"),
    hdf5(hostile_files.references, "expected numbers"),
    hdf5(hostile_files.texts, "expected numbers"),
    hdf5(hostile_files.large_metadata, ""),
    hdf5(hostile_files.deep_metadata, ""),
    physics_of_states_elsewhere,
    control_characters("info"),
    control_characters("check"),
    a_pipe_for_data,
    a_device_for_data,
    names_in_data("check"),
    names_in_data("convert"),
    minari_good,
    minari_without_spaces,
    in_minari("entry point 'os:system'", entry_point="os:system", kwargs={"command": "touch executed"}),
    in_minari("entry point 'os:system'", id="Fine-v0", entry_point="os:system", kwargs={"command": "touch executed"}),
    in_minari(
        "inside wrappers",
        additional_wrappers=[{"name": "A", "entry_point": "os:system", "kwargs": {"command": "touch executed"}}],
    ),
    in_minari("may be a file or code", kwargs={"xml_file": "/etc/passwd"}),
    in_minari(
        "entry point 'os:system'",
        Observation_space=None,
        Action_space=None,
        entry_point="os:system",
        kwargs={"command": "touch executed"},
    ),
    in_minari("of memory|observes 3 numbers", Observation_space='{"type": "Box", "shape": [99999999999], "low": 0}'),
    in_minari("stored as 'parquet'", Data_format="parquet"),
    two_minari_folders_up,
    minari_link_out,
    minari_external_link,
    minari_pipe,
    in_config("nothing shows that this user started", env="evil_module:Thing-v0"),
    in_config("nothing shows that this user started", ("eval",), env="evil_module:Thing-v0"),
    in_config("nothing shows that this user started", env="os:system", begun=False),
    in_config(
        "nothing shows that this user started",
        ("collect", "--env", "qcse/antmaze-umaze-v2", "--policy"),
        env="evil_module:Thing-v0",
    ),
    mark_is_a_device,
    in_config("entry point 'os:system'", env="minari:some/set-v0"),
    in_config("is not a name of Minari's", env="minari:../../outside-v0"),
    in_config("is a device", dataset="/dev/zero", begun=False),
    in_config("is a named pipe", dataset="pipe", begun=False),
    in_config("is not a name of Minari's", dataset="minari:../../outside-v0", begun=False),
    in_config("checkpoint holds", ("eval",), net={"policy_hidden": [60_000, 60_000]}),
    in_config("checkpoint holds", net={"critic_hidden": [4096] * 4, "critics": 500}),
    in_config("checkpoint holds", ("eval",), seeds=10_000),
    in_recording("nothing shows that this user started", env="evil_module:Thing-v0"),
    in_recording("without folders", env="Hopper-v5", name="../../outside"),
    in_recording("without folders", env="qcse/pointmaze-umaze-v0", name="../../outside"),
    config_is_a_pipe,
    config_without_an_end,
    config_deeply_nested,
    checkpoint_of(a_pickle),
    checkpoint_of(a_pickle_in_an_archive),
    checkpoint_of(an_archive_that_unpacks_to_gigabytes),
    sweep_names_folders_outside,
    sweep_is_a_pipe,
    script_in_a_report,
]


def test_there_are_enough() -> None:
    assert len({way.__name__ for way in WAYS}) == len(WAYS) >= 24


@pytest.mark.skipif(sys.platform != "linux", reason="limits and peaks are Linux's")
@pytest.mark.parametrize("way", WAYS, ids=[way.__name__ for way in WAYS])
def test_is_closed(
    way: Callable[[Path, Path], Way], parts: Path, server: subprocess.Popen[str], tmp_path: Path
) -> None:
    folder = tmp_path / "here"
    folder.mkdir()
    words, message = way(folder, parts)
    assert server.stdin is not None and server.stdout is not None
    asked = {"folder": str(folder), "words": words, "seconds": SECONDS, "gigabytes": GIGABYTES}
    server.stdin.write(json.dumps(asked) + "\n")
    server.stdin.flush()
    answer = json.loads(server.stdout.readline())
    said = answer["said"]
    assert not list(tmp_path.rglob("executed*")), said
    assert sorted(path.name for path in tmp_path.iterdir()) == ["here"]
    assert answer["peak"] is not None and answer["peak"] < PEAK, answer
    assert answer["code"] == (1 if message else 0), answer
    assert "Traceback" not in said and "\x1b" not in said
    if message:
        errors = [line for line in said.splitlines() if line.startswith(f"qcse {words[0]}: ")]
        assert len(errors) == 1 and any(part in errors[0] for part in message.split("|")), said
    page = folder / "page" / "report.html"
    assert not page.exists() or "<script src" not in page.read_text()
