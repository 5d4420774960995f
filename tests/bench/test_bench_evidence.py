"""`make evidence`: outcomes, time limits, restarts and files, by stages that run small commands."""

from __future__ import annotations

import ast
import json
import os
import signal
import sys
import time
from pathlib import Path

import pytest

BENCH = Path(__file__).parents[2] / "bench"
sys.path.append(str(BENCH))

import collect
import environment
import evidence
import limited
import resumed
import stages
from stages import NAMES, Stage, Step

ABOUT = {
    **{
        "gpu": "NVIDIA H200",
        "driver": "580.1",
        "cuda": "13.0",
        "cpu": "a processor, 2 cores",
        "threads": "1",
    },
    **{"torch": "2.14", "triton": "3.8", "sigscale": "0.1.0", "python": "3.11.7"},
}
RESULT = {
    "kind": "penalty",
    "parameters": "some",
    "way": "gradient",
    "dtype": "float32",
    "provider": "sigscale",
}


@pytest.fixture(autouse=True)
def _signals():
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


def python(text):
    return (sys.executable, "-c", text)


class Bench:
    """Stages of one command each, over code that a test can change."""

    def __init__(self, place):
        self.place, self.folder, self.code = place, place / "out", place / "measured.txt"
        self.code.write_text("1")
        self.ran = place / "ran"
        self.ran.write_text("")
        self.commands = {}
        self.skips = {}

    def stage(self, name, text="", kind="figures", skip=""):
        noting = f"open({str(self.ran)!r}, 'a').write('{name} ')\n"
        self.commands[name] = (kind, python(noting + text), skip)

    def made(self, options):
        self.options = options
        kept = options.work("kernels") / "kept.jsonl"
        return [
            Stage(name, kind, (Step(name, command, {}, kept),), (str(self.code),), skip)
            for name, (kind, command, skip) in self.commands.items()
        ]

    def run(self, *arguments, about=ABOUT):
        self.ran.write_text("")
        words = ["--out", str(self.folder), "--commit", "c0ffee", *arguments]
        return evidence.main(words, lambda: dict(about), self.made)

    def names(self):
        return self.ran.read_text().split()

    def of(self, name):
        return json.loads((self.folder / name / "stage.json").read_text())


@pytest.fixture
def bench(tmp_path):
    return Bench(tmp_path)


def test_all_pass(bench, capsys):
    bench.stage("gpu-tests", "print('hello')")
    bench.stage("kernels")
    assert bench.run() == 0
    assert bench.names() == ["gpu-tests", "kernels"]
    assert "hello" in (bench.folder / "gpu-tests/log.txt").read_text()
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in lines[-3:]] == [
        ["stage", "outcome"],
        ["gpu-tests", "passed"],
        ["kernels", "passed"],
    ]


def test_others_go_on_after_a_failure_which_is_tried_again(bench, capsys):
    bench.stage("gpu-tests", "import sys; sys.exit('no such thing')")
    bench.stage("kernels")
    assert bench.run() == 1
    assert bench.names() == ["gpu-tests", "kernels"]
    assert bench.of("gpu-tests")["outcome"] == "failed"
    assert "exit code 1, no such thing" in bench.of("gpu-tests")["remark"]
    assert bench.run() == 1
    assert bench.names() == ["gpu-tests"]
    bench.stage("gpu-tests")
    assert bench.run() == 0
    assert bench.names() == ["gpu-tests"]
    assert "passed, before" in capsys.readouterr().out
    assert bench.run() == 0
    assert bench.names() == []


def test_what_has_passed_is_run_again_when_asked_or_when_the_code_is_another(bench):
    bench.stage("kernels")
    bench.run()
    bench.run("--again")
    assert bench.names() == ["kernels"]
    before = bench.of("kernels")["code"]["hash"]
    bench.code.write_text("2")
    bench.run()
    assert bench.names() == ["kernels"]
    assert bench.of("kernels")["code"]["hash"] != before
    bench.run()
    assert bench.names() == []


def test_a_stage_is_cut_off_at_its_limit_and_gone_on_with(bench):
    """Its work is kept; that of other code is not."""
    kept = bench.folder / "figures/work/kept"
    text = f"import pathlib, time; p = pathlib.Path({str(kept)!r}); p.exists() or [p.touch(), time.sleep(60)]"
    bench.stage("figures", text)
    assert bench.run("--limit", "3") == 1
    assert bench.of("figures")["outcome"] == "timed out"
    assert bench.of("figures")["remark"].startswith("figures: cut off after 3 s")
    assert bench.run("--limit", "30") == 0
    assert kept.exists()
    bench.code.write_text("2")
    bench.stage("figures")
    assert bench.run() == 0
    assert not kept.exists()


def test_only_stages_that_are_asked_for(bench):
    bench.stage("kernels")
    bench.stage("figures")
    assert bench.run("--stages", "figures") == 0
    assert bench.names() == ["figures"]
    with pytest.raises(SystemExit, match="'figure': the stages are gpu-tests kernels"):
        bench.run("--stages", "figure")


def test_skipped_by_name_with_the_reason(bench, capsys):
    bench.stage("sanitize", skip="needs a GPU")
    assert bench.run() == 0
    assert bench.names() == []
    assert capsys.readouterr().out.splitlines()[-1].split(maxsplit=3)[1:] == ["skipped", "0", "needs a GPU"]


def test_interrupted(bench, capsys):
    bench.stage("kernels", f"import os, signal, time; os.kill({os.getpid()}, signal.SIGTERM); time.sleep(60)")
    bench.stage("figures")
    start = time.monotonic()
    assert bench.run() == 130
    assert time.monotonic() - start < 30
    assert bench.names() == ["kernels"]
    assert bench.of("kernels")["outcome"] == "interrupted"
    assert "not begun" in capsys.readouterr().out.splitlines()[-1]


def test_a_dry_run_writes_nothing(bench, capsys):
    bench.stage("kernels", "print(1)")
    bench.stage("sanitize", skip="needs a GPU")
    assert bench.run("--dry-run") == 0
    assert not bench.folder.exists()
    assert "# kernels\n" in (out := capsys.readouterr().out)
    assert "# sanitize: skipped, needs a GPU\n" in out


def test_the_environment_has_no_paths(bench):
    bench.stage("kernels", f"print({str(bench.folder)!r}, {sys.prefix!r})")
    bench.run("--data", str(bench.place))
    about = json.loads((bench.folder / "environment.json").read_text())
    assert about.keys() == {*ABOUT, "quick", "commit", "command", "date", "code"}
    assert about["command"] == "python bench/evidence.py --data DATA"
    for file in ("environment.json", "kernels/log.txt"):
        text = (bench.folder / file).read_text()
        assert str(bench.place) not in text
        assert sys.prefix not in text


def test_machines_are_not_mixed(bench):
    bench.stage("kernels")
    bench.run()
    with pytest.raises(SystemExit, match="is of gpu 'NVIDIA H200', here 'NVIDIA H100'"):
        bench.run(about={**ABOUT, "gpu": "NVIDIA H100"})
    with pytest.raises(SystemExit, match="is of quick 'no', here 'yes'"):
        bench.run("--quick")


def test_files_of_others_are_left_alone(bench):
    bench.folder.mkdir()
    (bench.folder / "notes.md").touch()
    with pytest.raises(SystemExit, match="holds other files"):
        bench.run()


def test_a_benchmarks_results(bench):
    """Those of tests that passed, also where another failed."""
    record = {**RESULT, "seconds": 1e-5, "ratios": {"eager": [0.5, 0.4, 0.6]}}
    lines = [
        {"test": "a", "outcome": "passed", "results": [record]},
        {"test": "b", "outcome": "failed", "results": [record]},
    ]
    text = "\n".join(map(json.dumps, lines)) + "\n{cut o"
    bench.stage(
        "kernels", f"open({str(bench.folder / 'kernels/work/kept.jsonl')!r}, 'w').write({text!r}); 1/0"
    )
    bench.commands["kernels"] = ("benchmarks", *bench.commands["kernels"][1:])
    assert bench.run() == 1
    run = json.loads((bench.folder / "kernels/results.json").read_text())
    assert run["benchmarks"][0]["extra_info"]["results"] == [record]
    assert run["machine_info"]["provenance"]["device"] == "NVIDIA H200"
    assert run["machine_info"]["code"] == bench.of("kernels")["code"]
    assert "NVIDIA H200" in (bench.folder / "kernels/tables.md").read_text()


def test_pictures_and_reports_are_copied_without_paths(bench):
    work = bench.folder / "figures/work/run"
    text = f"import pathlib; p = pathlib.Path({str(work)!r}); p.mkdir(); (p / 'figure1.png').touch();"
    text += "(p / 'report.md').write_text(str(p)); (p / 'a.pt').touch()"
    bench.stage("figures", text)
    assert bench.run() == 0
    assert bench.of("figures")["files"] == ["figure1.png", "report.md", "log.txt"]
    assert (bench.folder / "figures/work/.gitignore").read_text() == "*\n"


def test_a_group_that_does_not_want_to_end_is_killed(tmp_path):
    child = "import os, signal, time; signal.signal(2, signal.SIG_IGN); signal.signal(15, signal.SIG_IGN)\n"
    text = (
        f"{child}os.fork(); open({str(tmp_path / 'pids')!r}, 'a').write(f'{{os.getpid()}} '); time.sleep(60)"
    )
    ended = limited.run(python(text), tmp_path / "log", 1.5, grace=(0.1, 0.1))
    assert ended.outcome == "timed out"
    assert ended.seconds < 30
    for pid in map(int, (tmp_path / "pids").read_text().split()):
        assert not _alive(pid)


def _alive(pid):
    """A process that nobody has waited for yet is not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_tests_that_passed_are_not_run_again(tmp_path):
    """Those that failed are; and where none is left, that is no error."""
    file, kept = tmp_path / "test_some.py", tmp_path / "kept.jsonl"
    base = (
        "import pathlib\nlog = pathlib.Path(__file__).with_name('log')\ndef test_one():\n    print('words')\n"
    )
    file.write_text(base + "def test_two():\n    assert log.exists()\n")
    command = (
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "resumed",
        "--resumed",
        str(kept),
        "-p",
        "no:cacheprovider",
    )
    command = (*command, "--rootdir", str(tmp_path), "-c", str(tmp_path / "pytest.ini"), str(file))
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    codes, env = [], {"PYTHONPATH": str(BENCH), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    for _ in range(3):
        codes.append(limited.run(command, tmp_path / "log.txt", 100, env).code)
        (tmp_path / "log").touch()
    assert codes == [1, 0, 0]
    lines = [json.loads(line) for line in kept.read_text().splitlines()]
    assert [(line["test"].rpartition("::")[2], line["outcome"]) for line in lines] == [
        ("test_one", "passed"),
        ("test_two", "failed"),
        ("test_two", "passed"),
    ]
    assert lines[0]["printed"] == "words\n"
    assert resumed.read(kept).keys() == {line["test"] for line in lines}


class TestStages:
    def test_names_and_order(self, tmp_path):
        made = stages.stages(stages.Options(tmp_path, gpu=False))
        assert tuple(stage.name for stage in made) == NAMES

    def test_without_a_gpu(self, tmp_path):
        made = stages.stages(stages.Options(tmp_path, gpu=False))
        assert [stage.name for stage in made if stage.skip == "needs a GPU"] == ["gpu-tests", "sanitize"]

    def test_without_the_sanitizer(self, tmp_path, monkeypatch):
        monkeypatch.setattr(stages.shutil, "which", lambda name: None)
        sanitize = stages.stages(stages.Options(tmp_path, gpu=True))[-1]
        assert sanitize.skip == "compute-sanitizer is not installed"

    def test_every_tool_over_the_selection(self, tmp_path):
        sanitize = stages.stages(stages.Options(tmp_path, gpu=True))[-1]
        assert [step.command[step.command.index("--tool") + 1] for step in sanitize.steps] == [*stages.TOOLS]
        assert all(set(stages.SANITIZED) <= {*step.command} and step.whole for step in sanitize.steps)

    @pytest.mark.parametrize("test", stages.SANITIZED)
    def test_what_is_sanitized_exists_and_runs_on_a_gpu(self, test):
        file, _, name = test.partition("::")
        tree = ast.parse((BENCH.parent / file).read_text(encoding="utf-8"))
        functions = {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}
        assert "device" in [argument.arg for argument in functions[name].args.args]

    def test_data_is_for_training(self, tmp_path):
        made = stages.stages(stages.Options(tmp_path, gpu=False, data=tmp_path / "cifar"))
        given = [stage.name for stage in made if str(tmp_path / "cifar") in stage.steps[-1].command]
        assert given == ["table4", "figures"]

    def test_what_is_on_pythons_path_stays_there(self, tmp_path, monkeypatch):
        """Such as packages that were installed to a folder of their own."""
        monkeypatch.setenv("PYTHONPATH", "/some/site")
        made = stages.stages(stages.Options(tmp_path, gpu=True))
        assert made[0].steps[0].env["PYTHONPATH"] == os.pathsep.join([str(BENCH), "/some/site"])

    def test_every_benchmark_has_a_stage(self, tmp_path):
        made = stages.stages(stages.Options(tmp_path, gpu=False))
        run = [start for stage in made if stage.kind == "benchmarks" for start in stage.starts]
        assert sorted(run) == sorted(f"bench/{path.name}" for path in BENCH.glob("test_*.py"))


def test_slugs():
    assert environment.slug({"gpu": "NVIDIA H100 80GB HBM3"}) == "nvidia-h100-80gb-hbm3"
    assert environment.slug({"gpu": ""}) == "cpu"


def test_a_folder_is_gone_on_with_while_it_is_of_this_code(tmp_path, monkeypatch):
    monkeypatch.setattr(evidence, "RESULTS", tmp_path)
    about = {**ABOUT, "quick": "no"}
    old = tmp_path / "nvidia-h200-2020-01-01"
    (old / "kernels").mkdir(parents=True)
    (old / "environment.json").write_text(json.dumps(about))
    stage = old / "kernels/stage.json"
    stage.write_text(json.dumps({"code": evidence.codehash.record(())}))
    assert evidence._folder(about, None) == old
    assert evidence._folder({**about, "torch": "2.15"}, None) != old
    stage.write_text(json.dumps({"code": {"hash": "", "files": {"kernels/activation.py": "another"}}}))
    assert evidence._folder(about, None) != old


def test_paths_are_shown_short():
    root = str(BENCH.parent)
    assert collect.shown(f"{root}/bench/x.py in {root}") == "bench/x.py in "
    assert collect.command([sys.executable, "-m", "pytest"]) == "python -m pytest"
    assert collect.shown("/data/cifar", [("/data/cifar", "DATA")]) == "DATA"
