"""What machines read: JSON against its schema, JUnit, GitHub's annotations and summary, and baselines."""

import json
from importlib import resources
from pathlib import Path
from xml.etree import ElementTree

import jsonschema
import pytest

from attackcheck.baseline import baseline_of
from attackcheck.cli import main
from attackcheck.run_folder import read_run

SCHEMA = json.loads((resources.files("attackcheck.reporters") / "report.schema.json").read_text())


def undescribed(schema, value, where="report"):
    """Keys of a document that its schema does not name."""
    if "$ref" in schema:
        schema = SCHEMA["$defs"][schema["$ref"].rpartition("/")[2]]
    for option in schema.get("anyOf", []):
        if "$ref" in option or option.get("type") == "object":
            schema = option if "$ref" not in option else SCHEMA["$defs"][option["$ref"].rpartition("/")[2]]
    if isinstance(value, list):
        return [key for entry in value for key in undescribed(schema.get("items", {}), entry, where)]
    if not isinstance(value, dict) or where.endswith((".subject", ".claim")):
        return []
    found = []
    for key, entry in value.items():
        described = schema.get("properties", {}).get(key, schema.get("additionalProperties"))
        found += [f"{where}.{key}"] if described is None else undescribed(described, entry, f"{where}.{key}")
    return found


def test_the_schema_is_a_schema():
    jsonschema.Draft202012Validator.check_schema(SCHEMA)


@pytest.mark.parametrize(
    ("net", "options"),
    [
        ("net", []),
        ("net", ["--shard", "2/3", "--no-audit", "--target", "1"]),
        ("bare", ["--radii", "nets.py:certifier", "--lipschitz", "1"]),
        ("sound", ["--budget", "0.001s"]),
    ],
)
def test_reports_obey_the_schema_and_it_names_every_key(verify, net, options):
    verify("--json", "report.json", *options, net=net)
    document = json.loads(Path("report.json").read_text())
    jsonschema.validate(document, SCHEMA)
    assert undescribed(SCHEMA, document) == []


def test_the_schema_refuses_what_is_no_report(verify):
    verify("--json", "report.json", "--images", "1", "--no-audit", "--maxfail", "1")
    text = Path("report.json").read_text()
    jsonschema.validate(json.loads(text), SCHEMA)
    for spoil in (
        lambda d: d.pop("violations"),
        lambda d: d.update(schema_version=2),
        lambda d: d["violations"][0].update(verdict="MAYBE"),
        lambda d: d["violations"][0].update(pixel=[1]),
        lambda d: d["subject"].pop("claim"),
        lambda d: d["counts"]["pixels"].update(VIOLATED=-1),
        lambda d: d["attacks"][0].update(forward="many"),
        lambda d: d.update(sound="yes"),
    ):
        document = json.loads(text)
        spoil(document)
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(document, SCHEMA)


def junit(path="junit.xml"):
    root = ElementTree.parse(path).getroot()
    cases = {(c.get("classname"), c.get("name")): c for c in root.iter("testcase")}
    assert int(root.get("tests")) == len(cases)
    for tag, count in (("failure", "failures"), ("error", "errors"), ("skipped", "skipped")):
        assert int(root.get(count)) == sum(case.find(tag) is not None for case in cases.values())
        for suite in root:
            assert int(suite.get(count)) == sum(case.find(tag) is not None for case in suite)
    return cases


def test_junit_has_a_case_for_each_image_and_attack(verify):
    assert verify("--junit", "junit.xml", "--json", "report.json") == 1
    cases = junit()
    document = json.loads(Path("report.json").read_text())
    images = [f"attackcheck.images-{i}" for i in range(5)]
    attacks = ["linearised", "ddn", "pgd", "lipschitz"]
    assert set(cases) == {("attackcheck.weights", "audit")} | {(i, a) for i in images for a in attacks}
    failed = {key for key, case in cases.items() if case.find("failure") is not None}
    found = {(f"attackcheck.{v['image_name']}", v["attack"]) for v in document["violations"]}
    assert failed == found | {("attackcheck.weights", "audit")}
    lines = "\n".join(case.findtext("failure") or "" for case in cases.values()).split()
    assert lines.count("VIOLATED") == len(document["violations"])
    assert lines.count("classes") == sum(v["pixel"] is not None for v in document["violations"])  # the map has none
    assert 0 < lines.count("classes") < lines.count("VIOLATED")
    assert float(cases["attackcheck.images-0", "ddn"].get("time")) > 0


@pytest.mark.slow
def test_junit_of_a_sound_and_of_a_stopped_run(verify):
    assert verify("--junit", "junit.xml", net="sound") == 0
    assert not [case for case in junit().values() if case.find("failure") is not None]
    assert verify("--junit", "junit.xml", net="interrupted") == 130
    assert junit()["attackcheck.run", "complete"].find("error").get("message") == "interrupted"
    assert verify("--junit", "-") == 2
    assert verify("--junit", "no/such/place.xml") == 2


@pytest.mark.slow
def test_a_resumed_run_has_the_junit_of_a_whole_one(verify):
    assert verify("--out", "run", "--maxfail", "1") == 1
    assert verify("--out", "run", "--junit", "junit.xml") == 1
    first = {key: case.find("failure") is None for key, case in junit().items()}
    assert verify("--out", "run", "--junit", "junit.xml") == 1
    assert {key: case.find("failure") is None for key, case in junit().items()} == first


@pytest.fixture
def github(monkeypatch, tmp_path):
    summary = tmp_path / "summary.md"
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(summary))
    return summary


def test_github_is_told(verify, github, capsys):
    github.write_text("before\n")
    assert verify("--out", "run") == 1
    annotations = [line for line in capsys.readouterr().out.splitlines() if line.startswith("::")]
    report = read_run("run").report
    assert len(annotations) == min(10, len(report.violations)) + 1
    worst = report.violations[0]
    assert annotations[0].startswith(f"::error title=attackcheck {worst.kind.name} x {worst.ratio:.4f}::")
    assert "%0Aattackcheck replay run/counterexamples/" in annotations[0]
    assert annotations[-1].startswith("::error title=attackcheck audit REFUTED::")
    text = github.read_text()
    assert text.startswith("before\n### attackcheck: UNSOUND\n")
    assert f"{len(report.violations)} violations in {report.attacked_count} attacked pixels of 5 images, plan" in text
    assert text.count("\n| PIXEL |") == sum(v.kind.name == "PIXEL" for v in report.violations)
    assert "attackcheck replay" in text


def test_github_without_violations_and_beside_json(verify, github, capsys):
    assert verify("--json", "-", "--no-audit", net="sound") == 0
    captured = capsys.readouterr()
    json.loads(captured.out)
    assert "::error" not in captured.err
    assert "### attackcheck: no violation found" in github.read_text()
    assert "would have been found" in github.read_text()


def test_annotations_cannot_be_forged():
    from attackcheck.reporters.github import _cell, _data, _property

    assert _data("50%\n::error::no") == "50%25%0A::error::no"
    assert _property("a:b,c\n") == "a%3Ab%2Cc%0A"
    assert _cell("a|b\n<img>") == r"a\|b\\n\<img\>"


def test_nothing_is_told_elsewhere(verify, capsys, monkeypatch):
    monkeypatch.delenv("GITHUB_ACTIONS", raising=False)
    monkeypatch.delenv("GITHUB_STEP_SUMMARY", raising=False)
    assert verify("--maxfail", "1", "--no-audit") == 1
    captured = capsys.readouterr()
    assert "::" not in captured.out + captured.err


def test_only_new_violations_fail_with_a_baseline(verify, capsys):
    assert verify("--json", "base.json", "--images", "2", "--out", "run") == 1
    for baseline in ("base.json", "run"):
        assert verify("--images", "2", "--baseline", baseline) == 0
        assert ", 0 are new" in capsys.readouterr().err
    assert verify("--images", "3", "--baseline", "base.json") == 1
    assert ", 0 are new" not in capsys.readouterr().err
    assert verify("--images", "2", "--baseline", "base.json", "--budget", "0.00001s") in (0, 2)


def test_a_baseline_excuses_what_it_names_and_nothing_else(verify):
    assert verify("--out", "run", "--images", "1") == 1
    report = read_run("run").report
    document = report.to_dict()
    assert baseline_of(document, "it").without_known(report).exit_code() == 0
    for number, violation in enumerate(document["violations"]):
        left = document["violations"][:number] + document["violations"][number + 1 :]
        same = [v for v in left if v["kind"] == violation["kind"] and violation["kind"] not in ("PIXEL", "GADGET")]
        baseline = baseline_of(document | {"violations": left}, "it")
        assert len(baseline.without_known(report).violations) == (0 if same else 1)
        assert baseline.without_known(report).exit_code() == (0 if same else 1)
    without_audit = baseline_of(document | {"audit": None}, "it").without_known(report)
    assert without_audit.violations == ()
    assert without_audit.exit_code() == 1  # refuted by the audit as well


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"schema_version": 1}', '{"schema_version": 7}', "\x00"])
def test_a_bad_baseline_is_one_sentence(verify, capsys, content):
    Path("base.json").write_text(content)
    assert verify("--baseline", "base.json") == 2
    captured = capsys.readouterr().err
    assert captured.startswith("attackcheck: expected a report")
    assert captured.count("\n") == 1


def test_runs_are_compared(verify, place, capsys):
    assert verify("--out", "a", "--json", "a.json") == 1
    assert verify("--out", "b", "--seed", "1", "--pixels", "12", "--images", "2") == 1
    assert verify("--out", "c", "--lipschitz", "5", "--pixels", "4") == 0
    capsys.readouterr()
    assert main(["compare", "a", "b", "c", "--json", "compared.json"]) == 0
    out = capsys.readouterr().out
    assert "B against A" in out
    assert "C against A: 0 new violations" in out
    document = json.loads(Path("compared.json").read_text())
    one, other = (read_run(name).report for name in ("a", "c"))
    pair = document["pixels"][1]
    both = one.attacked & other.attacked
    assert (pair["images"], pair["pixels"], pair["classes_changed"]) == (5, int(both.sum()), 0)
    assert pair["radius_ratio"]["0.5"] == pytest.approx(1.04904 / 5, rel=1e-4)
    violated = [(v.image, *v.pixel) for v in one.violations if v.kind.name == "PIXEL"]
    assert pair["violated_in_first_only"] == sum(bool(other.attacked[place]) for place in violated) > 0
    assert pair["violated_in_second_only"] == 0
    assert len(document["violations"][1]["gone"]) == len(
        {(v.kind, v.image_name, v.pixel if v.kind.name == "PIXEL" else None) for v in one.violations}
    )
    assert main(["compare", "a", "a.json"]) == 0
    assert "0 new violations, 0 gone" in capsys.readouterr().out
    for wrong in (["a"], ["a", "nothing"], ["a", "images.npz"], ["a", "b", "--json", "no/such.json"]):
        assert main(["compare", *wrong]) == 2
        assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.slow
def test_the_comparison_is_drawn(verify, capsys):
    pytest.importorskip("matplotlib")
    for name in ("a", "b"):
        assert verify("--out", name, "--images", "1", "--json", f"{name}.json") == 1
    assert main(["compare", "a", "b", "--plot", "both.png"]) == 0
    assert Path("both.png").read_bytes().startswith(b"\x89PNG")
    assert main(["compare", "a.json", "b.json", "--plot", "none.png"]) == 2
    assert "in common" in capsys.readouterr().err
