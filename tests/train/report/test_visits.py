"""What a run visited: read back from its checkpoint, drawn, and put in the report."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.image import imread
from support import quick

from qcse.errors import QcseError
from qcse.report import report
from qcse.report.visits import CELLS, Plane, cells_of, draw_visits, read_visits
from qcse.runs import checkpoint
from qcse.runs.trainer import Trainer


@pytest.fixture(scope="module")
def trained(hopper_data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Trainer]:
    """Two seeds with a bonus and normalised states."""
    out = tmp_path_factory.mktemp("visits") / "run"
    config = quick("cal_ql", "Hopper-v5", dataset=hopper_data, offline_steps=4, online_steps=40, seeds=2)
    config.bonus.kind, config.bonus.k, config.normalize_observations = "qcse", 3, True
    trainer = Trainer(config, out, quiet=True)
    trainer.run()
    return out, trainer


@pytest.mark.parametrize("seed", [0, 1])
def test_visits_are_the_seeds_own_states_in_the_environments_units(trained: tuple[Path, Trainer], seed: int) -> None:
    out, trainer = trained
    visits = read_visits(out / f"seed{seed}")
    assert visits is not None and visits.offline is not None and visits.env == "Hopper-v5"
    want = trainer.buffer.online["observations"][seed].numpy() * trainer.experiment.spread + trainer.experiment.mean
    np.testing.assert_allclose(visits.online, want, rtol=1e-6, atol=1e-6)
    assert 0.5 < visits.online[:, 0].mean() < 1.5  # the height of a hopper, in metres
    assert visits.offline.shape[1] == 11
    rows = trainer.buffer.all_online()
    bonus = trainer.reward.of_stored(rows, learn=False)[seed]
    torch.testing.assert_close(torch.from_numpy(visits.bonus), bonus)
    batch = trainer.buffer.gather(rows)
    torch.testing.assert_close(torch.from_numpy(visits.q), trainer.agent.min_q(batch.observations, batch.actions)[seed])


def test_a_folder_without_online_transitions_has_none(tmp_path: Path, hopper_data: Path) -> None:
    config = quick("cql", "Hopper-v5", dataset=hopper_data, offline_steps=2, online_steps=0)
    Trainer(config, tmp_path / "run", quiet=True).run()
    assert read_visits(tmp_path / "run") is None
    (tmp_path / "run" / "checkpoint.pt").unlink()
    assert read_visits(tmp_path / "run") is None


def test_a_dataset_that_has_moved_is_left_out(tmp_path: Path, hopper_data: Path) -> None:
    moved = tmp_path / "data.hdf5"
    moved.write_bytes(hopper_data.read_bytes())
    config = quick("cql", "Hopper-v5", dataset=moved, offline_steps=2, online_steps=20)
    Trainer(config, tmp_path / "run", quiet=True).run()
    moved.unlink()
    visits = read_visits(tmp_path / "run")
    assert visits is not None and visits.offline is None and len(visits.bonus) == 0
    figure = draw_visits([("cql", "#0072B2", visits)])
    assert len(figure.axes) == 1


def test_plane() -> None:
    rng = np.random.default_rng(0)
    states = rng.standard_normal((500, 5)).astype(np.float32)
    maze = Plane.of("qcse/pointmaze-umaze-v0", states)
    np.testing.assert_allclose(maze.project(states), states[:, :2], rtol=1e-6)
    states[:, 3] = 3 * states[:, 1] + 0.01 * states[:, 3]
    points = Plane.of("Hopper-v5", states).project(states)
    assert abs(np.corrcoef(points[:, 0], states[:, 1])[0, 1]) > 0.99  # two coordinates that move as one come first
    np.testing.assert_allclose(np.cov(points.T)[0, 1], 0, atol=1e-8)


def test_cells() -> None:
    limits = np.array([[0.0, 1.0], [0.0, 2.0]])
    points = np.array([[0.0, 0.0], [0.01, 0.01], [1.0, 2.0], [9.0, 9.0]])
    assert cells_of(points, limits) == {0, CELLS * CELLS - 1}


def test_report_shows_them(trained: tuple[Path, Trainer], tmp_path: Path) -> None:
    text = report([trained[0]], tmp_path)
    assert "visits-Hopper-v5.png" in text
    picture = imread(tmp_path / "visits-Hopper-v5.png")
    assert picture.shape[1] > 1000 and picture.std() > 0.05
    assert "Visited states, Hopper-v5" in (tmp_path / "report.html").read_text()


def test_a_checkpoint_that_does_not_fit_is_named(
    trained: tuple[Path, Trainer], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = checkpoint.load_run(trained[0])
    assert whole is not None
    for name, value in (("agent", None), ("buffer", {"added": 40}), ("observation_scale", [1]), ("config", "{}"),
                        ("config", 3), ("reward", {}), ("buffer", None)):  # fmt: skip
        changed = whole | {name: value}
        monkeypatch.setattr(checkpoint, "load_run", lambda folder, state=changed: state)
        with pytest.raises(QcseError) as caught:
            read_visits(trained[0])
        assert str(trained[0]) in str(caught.value) and len(str(caught.value).splitlines()) == 1
    text = report([trained[0]], tmp_path)
    assert "Left out: visited states of seed0" in text and "visits-" not in text
