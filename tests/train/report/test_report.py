"""Reports: the figures of the table against hand-made curves, what is averaged with what, the page, the errors."""

from __future__ import annotations

import base64
import csv
import html.parser
import json
import math
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.image import imread

from qcse.envs.scores import REFERENCE_SCORES
from qcse.errors import InUseError
from qcse.files import own
from qcse.report import ReportError, group_runs, read_run, report, table_rows
from qcse.report.figures import DIAGNOSTICS, LOSSES, draw_bonus, draw_losses
from qcse.report.tables import COLUMNS, across_rows, stratified_bootstrap
from qcse.report.write import _file_names
from qcse.runs.log import EVAL_COLUMNS, RunLog


def make_run(
    path: Path,
    curve: list[tuple[int, str, float]],
    env: str = "Hopper-v5",
    algo: str = "cal_ql",
    bonus: str = "none",
    seed: int = 0,
    k: int = 10,
    offline: int = 100,
    online: int = 100,
    diagnostics: bool = False,
    **options: Any,
) -> Path:
    """A run folder as training writes it. `curve` has (step, phase, value), normalised where there is a reference."""
    config = {
        "algo": algo,
        "env": env,
        "bonus": {"kind": bonus, "k": k},
        "seed": seed,
        "dataset": "/some/where/hop.hdf5",
    }
    config |= {"offline_steps": offline, "online_steps": online, "eval_episodes": 4, "out": str(path)} | options
    log = RunLog(path, tensorboard=False)
    reference = REFERENCE_SCORES.get(env.split("-")[0].lower())
    for step, phase, value in curve:
        low, high = reference or (0.0, 100.0)
        score = value if reference else math.nan
        row = (step, phase, low + value / 100.0 * (high - low), 0.02 * (high - low), score, 55.0, 1.2 * step)
        log.write("eval", dict(zip(EVAL_COLUMNS, row, strict=True)))
    for step in range(20, 201, 20):
        row = {"step": step, "phase": "online", "critic_loss": 1.0}
        if diagnostics:
            row |= {name: math.nan if step <= 100 else 0.3 + 0.001 * step for name in DIAGNOSTICS}
        log.write("train", row)
    log.close()
    (path / "config.json").write_text(json.dumps(config))
    facts = {"cpu": "A <fast> CPU", "cores": 2, "commit": "abc123", "data": {"path": "hop.hdf5", "rows": 150_000}}
    (path / "machine.json").write_text(json.dumps(facts))
    return path


CURVE = [
    (0, "offline", 1.0),
    (50, "offline", 30.0),
    (100, "offline", 20.0),
    (150, "online", 60.0),
    (200, "online", 40.0),
]


def test_the_figures_of_one_run(tmp_path: Path) -> None:
    run = read_run(make_run(tmp_path / "a", CURVE))
    assert run.unit == "normalised score" and run.finished
    np.testing.assert_allclose(run.values, [1, 30, 20, 60, 40])
    assert (run.offline_end, run.last, run.best) == (20.0, 40.0, 60.0)
    assert run.area == pytest.approx(((20 + 60) / 2 * 50 + (60 + 40) / 2 * 50) / 100)
    assert run.last_error == pytest.approx(2.0 / math.sqrt(4))  # spread 2 points, 4 episodes
    (row,) = table_rows(group_runs([run]))
    assert row == ("Hopper-v5", "cal_ql", "0", "20.0", "40.0 ± 1.0", "60.0", "45.0", "0.550", "50", "4.0")


def test_online_only_and_offline_only_runs(tmp_path: Path) -> None:
    online = [(0, "online", 10.0), (50, "online", 20.0), (100, "online", 60.0)]
    a = read_run(make_run(tmp_path / "a", online, algo="sac", offline=0, online=100))
    assert math.isnan(a.offline_end) and a.area == pytest.approx((15 * 50 + 40 * 50) / 100) and a.best == 60.0
    b = read_run(make_run(tmp_path / "b", CURVE[:3], offline=100, online=0))
    assert b.offline_end == 20.0 and math.isnan(b.area) and b.best == 30.0 and b.finished
    (_, _, _, offline, _, _, area, regret, steps, _), _ = table_rows(group_runs([a, b]))[::-1]
    assert (offline, area, regret, steps) == ("-", "27.5", "0.725", "100")


def test_statistics_across_seeds_and_environments(tmp_path: Path) -> None:
    runs = []
    for env in ("Hopper-v5", "Ant-v5"):
        for bonus, gain in (("none", 0.0), ("qcse", 10.0)):
            for seed in range(4):
                curve = [(step, phase, value + gain + seed) for step, phase, value in CURVE]
                runs.append(read_run(make_run(tmp_path / f"{env}{bonus}{seed}", curve, env, bonus=bonus, seed=seed)))
    plain, bonus = across_rows(group_runs(runs))
    assert plain[:3] == ("cal_ql", "8", "2") and bonus[0] == "cal_ql + qcse"
    assert plain[3].startswith("41.5 [") and bonus[3].startswith("51.5 [") and plain[5] == "-"
    assert bonus[5] == "1.00 [1.00, 1.00]"


def test_returns_where_there_is_no_reference(tmp_path: Path) -> None:
    run = read_run(make_run(tmp_path / "a", CURVE, env="Pendulum-v1"))
    assert run.unit == "return" and run.last == 40.0 and run.spread[0] == pytest.approx(2.0)
    text = report([tmp_path / "a"], tmp_path / "out")
    assert "Pendulum-v1: no reference score" in text and "Normalised score:" not in text


def test_seeds_are_averaged_and_settings_are_not(tmp_path: Path) -> None:
    dirs = []
    for seed in range(3):
        shifted = [(step, phase, value + 3.0 * seed) for step, phase, value in CURVE]
        # A dataset elsewhere under the same name, another device: still the same experiment.
        dirs.append(
            make_run(tmp_path / f"n{seed}", shifted, seed=seed, dataset=f"/home/{seed}/hop.hdf5", device=f"d{seed}")
        )
        dirs.append(make_run(tmp_path / f"q{seed}", shifted, seed=seed, bonus="qcse"))
    dirs.append(make_run(tmp_path / "k20", CURVE, bonus="qcse", k=20))
    groups = group_runs([read_run(path) for path in dirs])
    assert [(g.label, [r.seed for r in g.runs]) for g in groups] == [
        ("cal_ql", [0, 1, 2]),
        ("cal_ql + qcse (bonus.k=10)", [0, 1, 2]),
        ("cal_ql + qcse (bonus.k=20)", [0]),
    ]
    assert len({g.colour for g in groups}) == 3
    steps, values = groups[0].shared()
    np.testing.assert_array_equal(steps, [0, 50, 100, 150, 200])
    np.testing.assert_allclose(values.mean(axis=0), [4, 33, 23, 63, 43])
    assert table_rows(groups)[0][4] == "43.0 [40.0, 46.0]"


def test_a_seed_that_is_not_finished_is_marked_and_does_not_bend_the_mean(tmp_path: Path) -> None:
    dirs = [make_run(tmp_path / "a", CURVE), make_run(tmp_path / "b", CURVE[:4], seed=1)]
    (group,) = group_runs([read_run(path) for path in dirs])
    np.testing.assert_array_equal(group.shared()[0], [0, 50, 100, 150])
    text = report(dirs, tmp_path / "out")
    assert "0, 1*" in text and "* b: evaluated up to step 150 of 200, not finished." in text


def test_a_run_named_twice_counts_once_and_a_seed_twice_is_told(tmp_path: Path) -> None:
    a = make_run(tmp_path / "a", CURVE)
    text = report([a, tmp_path / "x" / ".." / "a", a], tmp_path / "out")
    assert "40.0 ± 1.0" in text and "more than once" not in text
    copy = make_run(tmp_path / "b", CURVE)
    assert "seed 0 is there more than once" in report([a, copy], tmp_path / "out")


def test_bootstrap_against_the_normal_interval_and_by_strata() -> None:
    rng = np.random.default_rng(1)
    values = rng.normal(10.0, 2.0, size=(400, 3))
    low, high = stratified_bootstrap([values])
    half = 1.96 * values.std(axis=0) / math.sqrt(400)
    np.testing.assert_allclose(low, values.mean(axis=0) - half, atol=0.04)
    np.testing.assert_allclose(high, values.mean(axis=0) + half, atol=0.04)
    np.testing.assert_array_equal(stratified_bootstrap([values])[0], low)
    # Each stratum keeps its size: two constant ones leave nothing to chance, drawn together they would.
    a, b = np.zeros(5), np.ones(5)
    assert [float(bound) for bound in stratified_bootstrap([a, b])] == [0.5, 0.5]
    low, high = stratified_bootstrap([np.concatenate([a, b])])
    assert low < 0.35 and high > 0.65
    low, high = stratified_bootstrap([rng.normal(size=50)], statistic=np.median, level=0.5)
    assert low < high


class Page(html.parser.HTMLParser):
    """Open tags must close; images, links and text are collected."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.images: list[bytes] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        assert not {"href", "srcset"} & set(given), "the page must need nothing but itself"
        if tag == "img":
            head, _, data = (given["src"] or "").partition(",")
            assert head == "data:image/png;base64" and given["alt"]
            self.images.append(base64.b64decode(data))
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_whole_report(tmp_path: Path) -> None:
    dirs = []
    for env in ("Hopper-v5", "Ant-v5"):
        for bonus in ("none", "qcse"):
            for seed in range(2):
                path = tmp_path / f"{env}-{bonus}-{seed}"
                curve = [(step, phase, value + seed) for step, phase, value in CURVE]
                dirs.append(make_run(path, curve, env, bonus=bonus, seed=seed, diagnostics=bonus == "qcse"))
    out = tmp_path / "out"
    text = report(dirs, out)
    assert {path.name for path in out.iterdir()} == {
        "report.html",
        "curves.png",
        "bonus-Hopper-v5.png",
        "bonus-Ant-v5.png",
    }
    lines = text.splitlines()
    assert all(name in lines[0] for name in COLUMNS) and lines[2].startswith("Ant-v5")
    # once for each environment, once across both
    assert sum("cal_ql + qcse" in line for line in lines) == 3 and f"wrote {out / 'report.html'}" in text
    page = Page()
    page.feed((out / "report.html").read_text(encoding="utf-8"))
    assert page.open == []
    assert page.images == [
        (out / name).read_bytes() for name in ("curves.png", "bonus-Ant-v5.png", "bonus-Hopper-v5.png")
    ]
    for word in (
        "20.5 [20.0, 21.0]",
        "A <fast> CPU",
        "abc123",
        "rows: 150000",
        "options that are equal in all",
        "cal_ql + qcse",
    ):
        assert word in page.text, word
    for name in ("curves.png", "bonus-Ant-v5.png"):
        pixels = imread(out / name)
        assert min(pixels.shape[:2]) > 400 and pixels[..., :3].std() > 0.03  # large enough, and not blank
    # A second report replaces the first.
    report(dirs[:1], out)
    assert "cal_ql + qcse" not in (out / "report.html").read_text(encoding="utf-8")


def test_the_bonus_is_drawn_only_where_there_is_one(tmp_path: Path) -> None:
    plain = group_runs([read_run(make_run(tmp_path / "a", CURVE))])
    assert draw_bonus(plain) is None
    figure = draw_bonus(group_runs([read_run(make_run(tmp_path / "b", CURVE, bonus="qcse", diagnostics=True))]))
    assert figure is not None
    titles = [axes.get_title(loc="left") for axes in figure.axes]
    assert titles[: len(DIAGNOSTICS)] == list(DIAGNOSTICS.values())
    (line,) = figure.axes[0].get_lines()
    np.testing.assert_array_equal(line.get_xdata(), [120, 140, 160, 180, 200])  # offline there was none


def test_losses_of_two_precisions_are_drawn_beside_each_other(tmp_path: Path) -> None:
    assert draw_losses(group_runs([read_run(make_run(tmp_path / "none", CURVE))])) is None
    paths = []
    for precision, factor in (("float32", 1.0), ("bf16", 1.01)):
        paths.append(make_run(tmp_path / precision, CURVE, precision=precision))
        rows = "".join(f"{step},{factor * 100 / step},{factor * step}\n" for step in (50, 100, 150))
        (paths[-1] / "train.csv").write_text(f"step,loss/critic,q/data\n{rows}")
    figure = draw_losses(group_runs([read_run(path) for path in paths]))
    assert figure is not None
    assert [axes.get_title(loc="left") for axes in figure.axes[:2]] == [LOSSES["loss/critic"], LOSSES["q/data"]]
    lines = figure.axes[0].get_lines()
    values = sorted(float(line.get_ydata()[0]) for line in lines)
    assert values == pytest.approx([2.0, 2.02]) and all(len(line.get_xdata()) == 3 for line in lines)
    assert any("bf16" in text.get_text() for text in figure.legends[0].get_texts())
    report(paths, tmp_path / "out")
    assert imread(tmp_path / "out" / "losses-Hopper-v5.png")[..., :3].std() > 0.03


def test_folders_that_are_no_runs_are_named(tmp_path: Path) -> None:
    good = make_run(tmp_path / "good", CURVE)
    with pytest.raises(ReportError, match="got no run folders"):
        report([], tmp_path / "out")
    with pytest.raises(ReportError, match=r"absent is not a run folder: there is no such folder"):
        report([good, tmp_path / "absent"], tmp_path / "out")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ReportError, match=r"empty is not a run folder: it has no config\.json"):
        report([tmp_path / "empty"], tmp_path / "out")
    early = make_run(tmp_path / "early", [])
    with pytest.raises(ReportError, match=r"early holds no evaluation yet.*\(and 1 more folders cannot be read\)"):
        report([early, tmp_path / "empty"], tmp_path / "out")
    with pytest.raises(ReportError, match=r"cannot be written"):
        report([good], good / "eval.csv")
    assert not (tmp_path / "out").exists()


def test_a_folder_that_cannot_be_read_is_left_out_with_a_note(tmp_path: Path) -> None:
    dirs = [make_run(tmp_path / "good", CURVE), make_run(tmp_path / "early", []), make_run(tmp_path / "hurt", CURVE)]
    (tmp_path / "hurt" / "config.json").write_bytes(b"\xff")
    text = report(dirs, tmp_path / "out")
    assert "40.0 ± 1.0" in text and "early holds no evaluation yet" in text
    assert f"Left out: {tmp_path / 'hurt' / 'config.json'} is not UTF-8" in text
    assert "is not UTF-8" in (tmp_path / "out" / "report.html").read_text(encoding="utf-8")


HEADER = ",".join(EVAL_COLUMNS) + "\n"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("config.json", "{", r"config\.json is not valid JSON"),
        ("config.json", "[]", r"holds \[\], expected an object"),
        ("config.json", '{"algo": "sac", "env": "Hopper-v5"}', r"config\.json has no bonus\.kind, seed, offline_steps"),
        ("config.json", '{"seed": "0"}', r"config\.json: seed: got the text '0', expected a whole number"),
        ("config.json", '{"bonus": {"kind": 3}}', r"config\.json: bonus\.kind: got 3, expected one of"),
        ("eval.csv", "step,phase\n1,online\n", r"eval\.csv has no columns return_mean, return_std"),
        ("eval.csv", "\udcff\n", r"eval\.csv has no columns step"),
        ("eval.csv", HEADER + "\udcff\n", r"hurt holds no evaluation that can be read"),
        ("eval.csv", HEADER + "1,online\n", r"hurt holds no evaluation that can be read"),
        ("eval.csv", HEADER + "1,online,x,0,0,0,0\n", r"hurt holds no evaluation that can be read"),
        ("eval.csv", HEADER + "1,online,nan,0,0,0,0\n", r"hurt holds no evaluation that can be read"),
        ("eval.csv", HEADER + "1," + "x" * 200_000 + "\n", r"hurt holds no evaluation that can be read"),
    ],
)
def test_damaged_runs_are_named(tmp_path: Path, name: str, content: str, message: str) -> None:
    path = make_run(tmp_path / "hurt", CURVE)
    (path / name).write_text(content, errors="surrogateescape")
    with pytest.raises(ReportError, match=message) as caught:
        read_run(path)
    assert "hurt" in str(caught.value) and len(str(caught.value).splitlines()) == 1


def test_rows_that_cannot_be_read_are_left_out_with_a_note(tmp_path: Path) -> None:
    path = make_run(tmp_path / "a", CURVE, diagnostics=True)
    with open(path / "eval.csv", "a") as file:
        file.write("210,online\n220,online,x,0,0,0,0\n230,later,1,0,1,0,0\n-5,online,1,0,1,0,0\n")
        file.write(
            '240,online,inf,0,1,0,0\n245,"online,1,0,1,0,0\n250,online,1.0,0,1'
        )  # the last one is still being written
    with open(path / "train.csv", "a") as file:
        file.write("210,online\n" + "9" * 5000 + ",online,1" + ",1" * len(DIAGNOSTICS) + "\n")
    run = read_run(path)
    assert run.steps.tolist() == [0, 50, 100, 150, 200] and run.train["step"].tolist() == list(range(20, 201, 20))
    assert run.notes == [
        "a: 6 of the rows of eval.csv cannot be read and are left out.",
        "a: evaluations whose return is not finite are left out.",
        "a: 2 of the rows of train.csv cannot be read and are left out.",
    ]
    assert "a: 6 of the rows of eval.csv" in report([path], tmp_path / "out")


def test_what_comes_second_may_be_damaged(tmp_path: Path) -> None:
    path = make_run(tmp_path / "a", CURVE)
    for content, word in ((b"\xff\n", "is not UTF-8"), (b"loss\n1\n", "is not valid JSON")):
        (path / "train.csv").write_bytes(content)
        (path / "machine.json").write_bytes(content)
        run = read_run(path)
        assert run.train == {} and run.machine == {}
        assert word in run.notes[0] and "train.csv has no columns step" in run.notes[1]
    (path / "train.csv").unlink()
    (path / "machine.json").write_text('{"cpu": NaN, "earlier": [{"torch": "2.11"}, 3], "torch": "2.13"}')
    (path / "checkpoint.pt").write_bytes(b"nothing")
    text = report([path], tmp_path / "out")
    assert "Left out: visited states of a: checkpoint:" in text and "40.0 ± 1.0" in text
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "part 1 of the run" in page and "torch: 2.11" in page


def test_names_of_any_kind_are_drawn(tmp_path: Path) -> None:
    names = ["$x^{$", "e\x1b[31m\n\udc80", "long" * 200]
    dirs = [make_run(tmp_path / f"run\udce9{i}", CURVE, env=name) for i, name in enumerate(names)]
    text = report([*dirs, make_run(tmp_path / "$_{", CURVE, env="$x^{$", dataset="a/$_{.hdf5")], tmp_path / "out")
    assert "\x1b" not in text and "e?[31m??" in text and "dataset=$_{.hdf5" in text
    assert "e?[31m??" in (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    files = _file_names(["a/b-v0", "a-b-v0", "A-B-v0", "long" * 50, "a/b-v0"])
    assert len({name.lower() for name in files.values()}) == 4 and files["a/b-v0"] == "a-b-v0"
    assert max(map(len, files.values())) < 70


def test_logs_and_options_of_any_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make_run(tmp_path / "a", CURVE, more={"x" * 1000: "y" * 100_000})
    group, _ = group_runs([read_run(path), read_run(make_run(tmp_path / "b", CURVE))])
    assert len(group.label) < 400
    monkeypatch.setattr("qcse.report.runs.MOST_ROWS", 5)
    with pytest.raises(ReportError, match=r"a/eval\.csv has more than 5 rows"):
        read_run(path)


def test_steps_to_where_returns_are_negative(tmp_path: Path) -> None:
    curve = [(0, "online", -400.0), (10, "online", -300.0), (20, "online", -150.0), (30, "online", -100.0)]
    worse = [(step, phase, value - 20.0) for step, phase, value in curve]
    falling = [(step, phase, -500.0 - step) for step, phase, _ in curve]
    options = {"env": "Pendulum-v1", "algo": "sac", "offline": 0, "online": 30}
    dirs = [make_run(tmp_path / "a", curve, **options), make_run(tmp_path / "b", worse, bonus="qcse", **options)]
    assert [row[8] for row in table_rows(group_runs(map(read_run, dirs)))] == ["30", "30"]
    # Wherever training ends, the one that ends best reaches its own end.
    run = read_run(make_run(tmp_path / "c", falling, **options))
    assert [row[8] for row in table_rows(group_runs([run]))] == ["0"]


def test_a_run_without_extras_is_reported_all_the_same(tmp_path: Path) -> None:
    path = make_run(tmp_path / "a", CURVE)
    (path / "machine.json").unlink()
    (path / "train.csv").unlink()
    report([path], tmp_path / "out")
    assert "machine.json is missing" in (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    with open(path / "eval.csv", newline="") as file:
        assert len(list(csv.DictReader(file))) == 5


def test_two_reports_do_not_write_one_folder(tmp_path: Path) -> None:
    path = make_run(tmp_path / "a", CURVE)
    with ThreadPoolExecutor(1) as other, own(tmp_path / "out"):
        with pytest.raises(InUseError, match="out is in use"):
            other.submit(report, [path], tmp_path / "out").result()
