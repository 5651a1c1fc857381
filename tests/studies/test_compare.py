"""A comparison: its jobs, what is noted of them, who does them, and what is made of them."""

import csv
import itertools
import json
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from antigram.pipeline.errors import DamagedError, InputError
from antigram.pipeline.workspace import Workspace
from antigram.studies.compare.comparison import compare_runs
from antigram.studies.compare.database import Database
from antigram.studies.compare.design import ARMS, BASELINE, Setting, Study, Teacher, Training
from antigram.studies.compare.jobs import FoldData, Plan, StoreData, plan_jobs
from antigram.studies.compare.results import setting_results
from antigram.studies.compare.runner import run_jobs
from antigram.studies.compare.tables import write_tables
from antigram.studies.compare.texts import answer_of, compared_text

ROOT = Path(__file__).resolve().parents[2]
SETTING = Setting(data="s", folds="kfold:speaker:2", task="word", against="speaker")
FOLDS = [
    FoldData(StoreData(f"s@{k}", f"a{k}"), {"speaker": StoreData(f"s@{k}-speaker", f"b{k}")})
    for k in range(2)
]
ALONE = (BASELINE, "dropout", "weight-decay", "augment", "dann", "coral", "baseline-best")
ALL_ARMS = tuple(name for name in ARMS if name != BASELINE)


def a_study(arms=("wi", "at"), training=None, task="word", against="speaker", **changes):
    given = {
        "name": "study",
        "data": {"s": {"store": "s"}},
        "settings": {"": Setting(data="s", folds="kfold:speaker:2", task=task, against=against)},
        "teachers": {
            name: Teacher(task=against, settings={"shuffle_labels": name == "shuffled-labels"})
            for name in ("teacher", "shuffled-labels", "same-task")
        },
        "arms": {name: ARMS[name] for name in (BASELINE, *arms)},
        "at_layers": (5, 9),
        "seeds": 2,
        "training": Training(**training or {}),
    }
    return Study(**{**given, **changes})


def plan(given=None, folds=FOLDS):
    return plan_jobs(given or a_study(), {"": folds}, {}, "ws/runs")


def jobs(given=None, folds=FOLDS):
    return plan(given, folds).jobs


def test_a_fold_has_one_teacher_and_one_cache_and_each_seed_every_arm_at_every_layer():
    planned = plan(a_study(arms=("wi", "at", "permuted", "dropout")))
    kinds = [job.kind for job in planned.jobs]
    assert (kinds.count("teacher"), kinds.count("cache")) == (2, 4)
    trainings = [job for job in planned.jobs if job.kind == "training"]
    assert [cell.key for cell in planned.cells] == [job.key for job in trainings]
    ran = {(cell.fold, cell.seed, cell.arm, cell.variant.layer) for cell in planned.cells}
    arms = [("baseline", None), ("wi", None), ("at", 5), ("at", 9), ("permuted", 5)]
    arms += [("permuted", 9), ("dropout", None)]
    assert ran == {(k, s, *arm) for k, s, arm in itertools.product((0, 1), (0, 1), arms)}
    assert len(trainings) == len(ran)


def test_a_job_stands_behind_what_it_needs_and_no_teacher_is_trained_on_the_students_store():
    planned, seen = plan(a_study(arms=ALL_ARMS)), set()
    names = {cell.key: cell.arm for cell in planned.cells}
    teachers = {fold.teachers["speaker"].name for fold in FOLDS}
    for job in planned.jobs:
        assert set(job.needs) <= seen
        seen.add(job.key)
        assert (job.data in teachers) == (job.kind == "teacher")
        alone = names.get(job.key) in ALONE
        assert alone == (job.kind == "training" and not job.needs)


def test_commands_are_those_that_a_user_would_type():
    from antigram import cli

    for job in jobs(a_study(arms=ALL_ARMS)):
        command = cli.app.commands[job.command[0]]
        context = command.make_context(job.command[0], list(job.command[1:]), parent=None)
        assert context.params["name"] == job.name
        assert context.params.get("report") == (None if job.kind == "cache" else False)
        assert context.params["data"] == job.data


@pytest.mark.parametrize(
    "change",
    [{"epochs": 3}, {"width": 8}, {"lr": 1e-3}, {"patience": 3}, {"batch_clips": 7}],
)
def test_what_decides_a_result_is_in_the_keys_of_all_that_depend_on_it(change):
    before, after = jobs(), jobs(a_study(training=change))
    keys = {job.key for job in before}
    assert not keys & {job.key for job in after if job.kind == "training"}
    assert len({job.key for job in before}) == len({job.name for job in before}) == len(before)


def test_other_data_makes_other_jobs_and_more_seeds_keep_the_old_ones():
    keys = {job.key for job in jobs()}
    other = [FOLDS[0], FoldData(StoreData("s@1", "new"), FOLDS[1].teachers)]
    changed = {job.key for job in jobs(folds=other)}
    assert {cell.fold for cell in plan().cells if cell.key not in changed} == {1}
    assert keys < {job.key for job in jobs(a_study(seeds=3))}


def test_trainings_stay_what_they_are_if_a_study_gets_another_layer_arm_or_setting():
    keys = {cell.key for cell in plan().cells}
    wider = a_study(arms=("wi", "at", "permuted"), at_layers=(5, 9, 13))
    assert keys < {cell.key for cell in plan(wider).cells}


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"settings": {}}, "settings: there is at least one"),
        ({"against": "word"}, "`against` word: is the task itself"),
        ({"seeds": 0}, "seeds and layers"),
        ({"training": {"arch": "vgg12"}}, "arch is 'vgg12'"),
        ({"primary": ("magic",)}, "primary 'magic': wanted baseline, wi, at"),
        ({"teachers": {}}, "teachers: an arm needs one"),
    ],
)
def test_settings_without_a_meaning_are_refused(changes, match):
    with pytest.raises(InputError, match=match):
        a_study(**changes)


@pytest.fixture
def database(tmp_path):
    return Database(tmp_path / "study" / "results.sqlite")


def run(listed, database, tmp_path, do, workers=2):
    return run_jobs(
        listed,
        database,
        Workspace(tmp_path),
        workers=workers,
        on_message=lambda _: None,
        do=do,
    )


def test_jobs_are_done_once_and_behind_what_they_need(database, tmp_path):
    listed, done = jobs(), []

    def do(job):
        assert set(job.needs) <= set(done)
        time.sleep(0.002)
        done.append(job.key)
        return {"name": job.name}

    assert run(listed, database, tmp_path, do) == {"done": len(listed), "reused": 0}
    assert sorted(done) == sorted(job.key for job in listed)
    assert run(listed, database, tmp_path, do) == {"done": 0, "reused": len(listed)}
    assert len(done) == len(listed)
    assert database.result(listed[3].key)[0] == {"name": listed[3].name}


def test_two_processes_share_the_jobs(database, tmp_path):
    """Each writes the jobs that it does, in a script of its own process."""
    code = """
import json, sys, time
from pathlib import Path
from antigram.pipeline.workspace import Workspace
from antigram.studies.compare.database import Database
from antigram.studies.compare.runner import run_jobs
from tests.studies.test_compare import jobs

home, listed, done = Path(sys.argv[1]), jobs(), []

def do(job):
    time.sleep(0.05)
    done.append(job.key)
    return {}

database = Database(home / "study" / "results.sqlite")
print("ready", flush=True)
sys.stdin.readline()
run_jobs(listed, database, Workspace(home), workers=1, on_message=print, do=do)
print(json.dumps(done))
"""
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code, tmp_path],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )
        for _ in range(2)
    ]
    for process in processes:
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        process.stdin.write("go\n")
        process.stdin.flush()
    done = [json.loads(p.communicate()[0].splitlines()[-1]) for p in processes]
    assert all(done)  # both had some
    assert len(done[0]) + len(done[1]) == len(set(done[0] + done[1])) == len(jobs())
    assert set(database.states().values()) == {"done"}


def test_a_failed_job_ends_the_comparison_with_its_line_and_is_tried_again(database, tmp_path):
    listed = jobs()
    broken = next(job for job in listed if job.kind == "cache")

    def do(job):
        if job.key == broken.key:
            raise InputError("`antigram cache-grams` ended with exit code 2: no room")
        return {}

    with pytest.raises(InputError, match="exit code 2: no room"):
        run(listed, database, tmp_path, do)
    assert database.states()[broken.key] == "failed"
    left = [job for job in listed if database.states()[job.key] != "done"]
    counts = run(listed, database, tmp_path, lambda _: {})
    assert counts == {"done": len(left), "reused": len(listed) - len(left)}


def test_a_job_of_a_process_that_died_is_free_and_one_of_a_living_process_is_not(
    database, tmp_path
):
    (job, *_) = jobs()
    database.add([job])
    code = (
        "import sys; from pathlib import Path;"
        "from antigram.studies.compare.database import Database;"
        "database = Database(Path(sys.argv[1])); print(database.claim(sys.argv[2]), flush=True);"
        "sys.stdin.read()"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", code, database.path, job.key],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    assert other.stdout.readline() == "True\n"
    assert database.states()[job.key] == "running"
    assert not database.claim(job.key)
    other.send_signal(signal.SIGKILL)
    other.communicate()
    assert database.states()[job.key] == "new"
    assert database.claim(job.key)


def test_a_file_that_is_no_database_is_damage(tmp_path):
    path = tmp_path / "results.sqlite"
    path.write_bytes(b"no database at all, but long enough to be one" * 30)
    with pytest.raises(DamagedError, match=r"results\.sqlite: .*Delete it"):
        Database(path)


@pytest.fixture
def finished(database, rng):
    """A study of 24 speakers in two folds whose predictions are known."""
    groups = np.repeat(np.arange(24, dtype=np.int32), 50)
    given = a_study(seeds=3)
    planned = plan(given)
    cells = {cell.key: cell for cell in planned.cells}
    database.add(planned.jobs)
    for job in planned.jobs:
        arrays = {}
        if job.kind == "training":
            cell = cells[job.key]
            at = 0.9 if cell.variant.layer == 9 else 0.5
            share = {"baseline": 0.7, "wi": 0.7, "at": at}[cell.arm]
            for split in ("validation", "test"):
                rows = np.flatnonzero(groups % 2 == cell.fold)
                right = rng.random(len(rows)) < share
                true = np.zeros(len(rows), np.int32)
                arrays[split] = {
                    "row": rows,
                    "true": true,
                    "predicted": np.where(right, 0, 1).astype(np.int32),
                    "probability": np.where(right, 0.9, 0.1).astype(np.float32),
                }
        result: dict[str, Any] = {"disk_bytes": 100 if job.kind == "cache" else 1000}
        if job.kind == "training":
            memory = 600 + (cells[job.key].variant.layer or 0)
            result |= {"scores": {"train": {"segments": 1800}}, "peak_rss_mb": memory}
        database.finish(job.key, result, 2.0, arrays)
    return planned, given, groups


def results(plan, database, study, groups, chance):
    return setting_results(study, "", plan, database, groups, chance).arms


def test_layers_are_picked_by_validation_and_arms_compared_by_group(finished, database):
    planned, given, groups = finished
    found = {arm.arm: arm for arm in results(planned, database, given, groups, 0.5)}
    assert list(found) == ["baseline", "wi", "at", "at 5", "at 9"]
    assert found["at"].layers == {9: 6}
    assert found["at"].runs == 12
    assert found["at"].comparison.verdict == "better"
    assert found["at"].comparison.groups == 24
    assert found["at"].comparison.difference.mean == pytest.approx(0.2, abs=0.03)
    assert found["wi"].comparison.verdict in ("undecided", "equivalent")
    assert not found["at 9"].primary
    assert found["at 5"].comparison.difference.mean < -0.1
    assert found["baseline"].comparison is None
    test = [database.predictions(c.key, "test") for c in planned.cells if c.arm == "baseline"]
    want = np.mean([np.mean(each["predicted"] == each["true"]) for each in test])
    assert found["baseline"].accuracy.mean == pytest.approx(want, abs=1e-9)


def test_test_segments_have_no_say_in_the_choice_of_a_layer(finished, database):
    listed, given, groups = finished
    for job in listed.cells:
        if job.arm == "at":
            found = {s: database.predictions(job.key, s) for s in ("validation", "test")}
            found["test"]["predicted"] = found["test"]["predicted"] * 0 + (job.variant.layer == 9)
            database.finish(job.key, {}, 2.0, found)
    found = {arm.arm: arm for arm in results(listed, database, given, groups, 0.5)}
    assert found["at"].layers == {9: 6}
    assert found["at"].accuracy.mean == 0


def test_a_group_that_is_tested_in_several_folds_counts_once(finished, database):
    listed, given, groups = finished
    halves = (groups // 2).astype(np.int32)  # each has rows in both folds
    found = results(listed, database, given, halves, 0.5)
    assert found[2].comparison.groups == 12


def test_the_corrected_t_test_is_that_of_its_formula(finished, database):
    """One difference for each fold and seed; 600 segments are tested for 1800 in training."""
    planned, given, groups = finished
    right = {}
    for cell in planned.cells:
        kept = database.predictions(cell.key, "test")
        which = (cell.arm, cell.variant.layer, cell.fold, cell.seed)
        right[which] = np.mean(kept["predicted"] == kept["true"])
    at = [(k, s) for k in range(2) for s in range(3)]
    differences = [right["at", 9, k, s] - right["baseline", None, k, s] for k, s in at]
    mean = sum(differences) / 6
    variance = sum((d - mean) ** 2 for d in differences) / 5 * (1 / 6 + 600 / 1800)
    p = 2 * stats.t.sf(abs(mean) / variance**0.5, 5)
    half = 2.570581835636314 * variance**0.5  # Student's t with five degrees of freedom
    found = results(planned, database, given, groups, 0.5)[2].to_json()["difference"]
    want = {"mean": mean, "low": mean - half, "high": mean + half, "p": p}
    assert found["nadeau_bengio"] == pytest.approx(want, rel=1e-9)


def test_a_single_fold_has_no_corrected_t_test(database, finished):
    planned, given, groups = finished
    one = Plan(planned.jobs, [cell for cell in planned.cells if cell.fold == 0])
    found = [arm.to_json()["difference"] for arm in results(one, database, given, groups, 0.5)]
    assert found[0] is None
    assert [each["nadeau_bengio"] for each in found[1:]] == [None] * 4


def test_the_cost_of_an_arm_is_that_of_its_trainings_and_of_what_they_need(finished, database):
    planned, given, groups = finished
    found = {arm.arm: arm.to_json() for arm in results(planned, database, given, groups, 0.5)}
    costs = ("seconds", "before_seconds", "peak_rss_mb", "run_bytes", "cache_bytes")
    assert [found["baseline"][key] for key in costs] == [12.0, 0.0, 600, 6000, 0]
    assert [found["wi"][key] for key in costs] == [12.0, 4.0, 600, 6000, 0]
    assert [found["at"][key] for key in costs] == [24.0, 8.0, 609, 12_000, 200]
    assert [found["at 5"][key] for key in costs] == [12.0, 8.0, 605, 6000, 200]
    assert found["at"]["peak_device_mb"] is None


def test_what_an_older_database_does_not_have_is_unknown(finished, database):
    planned, given, groups = finished
    for job in planned.jobs:
        kept = {}
        if job.kind == "training":
            kept = {split: database.predictions(job.key, split) for split in ("validation", "test")}
        rows = {"layers": {"5": {"bytes_per_clip": 10}, "9": {"bytes_per_clip": 3}}, "clips": 7}
        database.finish(job.key, rows if job.kind == "cache" else {}, 2.0, kept)
    found = {arm.arm: arm.to_json() for arm in results(planned, database, given, groups, 0.5)}
    assert (found["at"]["peak_rss_mb"], found["at"]["run_bytes"]) == (None, None)
    assert found["at"]["cache_bytes"] == 2 * 7 * 13
    assert found["at"]["difference"]["nadeau_bengio"] is None
    assert found["at"]["difference"]["verdict"] == "better"


def content_of(finished, database, tmp_path):
    listed, given, groups = finished
    return {
        "study": str(tmp_path),
        "report": str(tmp_path / "report.html"),
        "arms": [arm.to_json() for arm in results(listed, database, given, groups, 0.5)],
        "title": "Does it help?",
        "question": "better on unseen recordings of <b> when",
        "stand_ins": {},
        "claims": [],
        "published": {},
        "notes": [],
        "data": {"task": "word", "groups": "speaker", "store": "<b>", "folds": 2, "seeds": 3},
        "settings": given.to_json(),
        "chance": 0.5,
        "warnings": [],
    }


def test_the_answer_is_a_sentence_and_the_tables_hold_the_numbers(finished, database, tmp_path):
    content = content_of(finished, database, tmp_path)
    json.dumps(content, allow_nan=False)
    at = content["arms"][2]["difference"]
    assert answer_of(content).startswith(
        f"Yes: Anti-transfer was better than the baseline by +{100 * at['mean']:.1f}"
    )
    assert "24 groups (speaker), 2 folds and 3 seeds" in answer_of(content)
    write_tables(tmp_path, content, [("antigram train --x <i>", 3.0)])
    page = (tmp_path / "report.html").read_text()
    assert answer_of(content) in page
    assert "recordings of &lt;b&gt; when" in page
    assert "&lt;i&gt;" in page
    rows = (tmp_path / "results.csv").read_text().splitlines()
    assert len(rows) == 6
    assert rows[3].startswith("at,9,12,")
    assert f",+{100 * at['mean']:.1f},+" in rows[3]
    assert (tmp_path / "results.tex").read_text().count("\\\\") == 6
    assert "better" in compared_text(content)


def test_claims_have_tables_of_their_own(finished, database, tmp_path):
    content = content_of(finished, database, tmp_path)
    write_tables(tmp_path, content, [])
    assert not list(tmp_path.glob("claims.*"))
    one = {"mean": 0.02, "low": -0.01, "high": 0.05, "p": 0.25}
    claim = {"name": "H1", "setting": "", "text": "5 % \\ better", "arm": "at", "p": 0.25}
    tested = {**claim, "differences": {"baseline": one, "wi": {**one, "low": None, "high": None}}}
    missing = {**claim, "name": "=H2", "differences": {}}
    outcome = {"p_holm": 0.5, "holds": False}
    content["claims"] = [{**tested, **outcome, "note": ""}, {**missing, **outcome, "note": "no"}]
    write_tables(tmp_path, content, [])
    with (tmp_path / "claims.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["claim"], row["over"], row["difference"]) for row in rows] == [
        ("H1", "baseline", "+2.0"),
        ("H1", "wi", "+2.0"),
        ("'=H2", "-", "-"),
    ]
    assert [row["95 %"] for row in rows] == ["-1.0 to +5.0", "-", "-"]
    assert {row["holds"] for row in rows} == {"no"}
    latex = (tmp_path / "claims.tex").read_text()
    assert r"5 \% \textbackslash{} better & at & baseline & +2.0" in latex
    content["claims"] = []
    write_tables(tmp_path, content, [])
    assert not list(tmp_path.glob("claims.*"))


@pytest.mark.parametrize(
    ("verdict", "note", "begins"),
    [
        ("worse", "", "No: Anti-transfer was worse"),
        ("equivalent", "", "No difference that matters"),
        ("undecided", "cannot be decided with 6 groups: p", "Undecided: "),
    ],
)
def test_what_is_not_better_is_not_called_so(verdict, note, begins, finished, database, tmp_path):
    content = content_of(finished, database, tmp_path)
    content["arms"][2]["difference"] |= {"verdict": verdict, "note": note}
    said = answer_of(content)
    assert said.startswith(begins)
    assert note in said


@pytest.mark.parametrize(("chance", "judged"), [(0.5, True), (0.7, False)])
def test_a_baseline_at_chance_judges_no_arm(chance, judged, finished, database, tmp_path):
    listed, given, groups = finished
    arms = results(listed, database, given, groups, chance)
    assert (arms[2].comparison.verdict == "better") == judged
    assert ({arm.comparison.verdict for arm in arms[1:]} == {"undecided"}) != judged
    content = content_of(finished, database, tmp_path)
    content |= {"arms": [arm.to_json() for arm in arms], "chance": chance}
    said = "Nothing can be said: the baseline's accuracy, "
    assert answer_of(content).startswith(said) != judged


def test_runs_without_a_result_are_refused(tmp_path):
    workspace = Workspace(tmp_path)
    (workspace.runs / "one").mkdir(parents=True)
    with pytest.raises(InputError, match="two or more runs"):
        compare_runs(workspace, ["one"])
    with pytest.raises(InputError, match="no result yet"):
        compare_runs(workspace, ["one", "one"])


def start(workspace, *words):
    command = [sys.executable, ROOT / "cli.py", "--workspace", workspace, "--json", *words]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)


def wait_for(path, count, process):
    """Wait until that many jobs of a running comparison are done."""
    while process.poll() is None:
        with (
            suppress(sqlite3.OperationalError),
            closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as found,
        ):
            query = "SELECT COUNT(*) FROM jobs WHERE state = 'done'"
            if found.execute(query).fetchone()[0] >= count:
                return
        time.sleep(0.1)
    raise AssertionError(f"the comparison ended before {count} jobs were done")


@pytest.mark.slow
def test_a_comparison_killed_twice_ends_in_the_table_of_one_left_in_peace(tmp_path, write_wav, rng):
    t = np.arange(4000) / 16_000
    lines = ["file_name,word,speaker"]
    for speaker, word, take in itertools.product(range(4), range(2), range(6)):
        name = f"{speaker}{word}{take}.wav"
        tone = np.sin(2 * np.pi * (300 + 900 * word + 60 * speaker) * t)
        write_wav(tmp_path / "own" / name, 0.3 * tone + 0.05 * rng.standard_normal(t.size))
        lines.append(f"{name},word {word},speaker {speaker}")
    (tmp_path / "own" / "metadata.csv").write_text("\n".join(lines))
    asked = "compare --against speaker --layers 5 --seeds 1 --folds kfold:speaker:2 --width 1 "
    asked += "--epochs 2 --arms at --name study"
    answers = []
    for name, kills in (("peace", ()), ("killed", (2, 5))):
        prepare = ["prepare", "folder", "--source", str(tmp_path / "own"), "--seconds", "0.25"]
        start(tmp_path / name, *prepare, "--main-label", "word").communicate()
        study = tmp_path / name / "studies" / "study" / "results.sqlite"
        for count in kills:
            process = start(tmp_path / name, *asked.split())
            wait_for(study, count, process)
            process.send_signal(signal.SIGKILL)
            process.communicate()
        answers.append(json.loads(start(tmp_path / name, *asked.split()).communicate()[0]))
    peace, killed = (answer["jobs"] for answer in answers)
    assert peace == {"done": 8, "reused": 0}
    assert killed["reused"] >= 5
    assert sum(killed.values()) == 8
    for own, other in zip(*(answer["arms"] for answer in answers), strict=True):
        for key in ("arm", "layer", "runs", "accuracy", "difference"):
            assert own[key] == other[key]
    with closing(sqlite3.connect(study)) as database:
        assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
