"""The checker finds the planted faults and leaves the sound subjects alone."""

import json

import pytest

import attackcheck as ac
from attackcheck.cli import main
from attackcheck.faults import CATALOGUE, Family
from attackcheck.faults.selftest import Outcome, curves, run_case, run_selftest, select

BY_NAME = {case.name: case for case in CATALOGUE}
QUICKLY = (
    "reshaped-kernel",
    "pixel-constant-for-sets",
    "radii-in-eight-bit-floats",
    "training-mode",
    "margins-overflow",
    "exact-radii",
    "constant-predictor",
)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", QUICKLY)
def test_a_few_cases(name):
    result = run_case(BY_NAME[name], prove=False)
    assert result.outcome in (Outcome.DETECTED, Outcome.CLEAR), result


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", CATALOGUE, ids=lambda case: case.name)
def test_every_case(case):
    result = run_case(case, seed=0, prove=False)
    assert result.outcome in (Outcome.DETECTED, Outcome.CLEAR), result


def test_a_ratio_is_never_above_the_true_factor():
    result = run_case(BY_NAME["temperature-left-out"], severity=1.1)
    assert result.factor == pytest.approx(1.1, rel=1e-4)
    assert 1.05 < result.ratio <= 1.1001
    assert result.first is not None
    assert result.first <= result.seconds


def test_a_refusal_counts_only_where_it_is_the_answer():
    assert run_case(BY_NAME["random-logits"], prove=False).detected_by == ("AC104",)
    strange = BY_NAME["random-logits"]
    stripped = type(strange)(**{**strange.__dict__, "refusable": False})
    result = run_case(stripped, prove=False)
    assert result.outcome is Outcome.MISSED
    assert "AC104" in result.remark
    sound = type(strange)(**{**strange.__dict__, "sound": True})
    assert run_case(sound, prove=False).outcome is Outcome.ALARM


def test_a_crash_is_a_miss_or_an_alarm(monkeypatch):
    from attackcheck.faults import selftest

    def broken(*args, **kwargs):
        raise ZeroDivisionError("out of order")

    monkeypatch.setattr(selftest, "verify", broken)
    for name, outcome in (("sqrt2-forgotten", Outcome.MISSED), ("exact-radii", Outcome.ALARM)):
        result = run_case(BY_NAME[name], prove=False, audit=False)
        assert result.outcome is outcome
        assert "out of order" in result.remark


def test_an_interruption_ends_the_measurement_and_keeps_its_results(monkeypatch, tmp_path):
    from attackcheck.faults import selftest

    verify, calls = selftest.verify, []

    def interrupted(*args, on_event=None, **kwargs):
        def hear(event):
            calls.append(event)
            if len(calls) > 40:
                raise KeyboardInterrupt
            on_event(event)

        return verify(*args, on_event=hear, **kwargs)

    monkeypatch.setattr(selftest, "verify", interrupted)
    path = tmp_path / "part.json"
    command = ["selftest", "--case", "training-mode,one-pixel,sqrt2-forgotten,exact-radii", "--json", str(path)]
    assert main(command) == 130
    document = json.loads(path.read_text())
    assert document["interrupted"]
    assert 1 <= len(document["results"]) < 4


def test_cases_are_selected_by_name_and_family():
    assert [case.name for case in select(CATALOGUE, ["exact-radii"])] == ["exact-radii"]
    assert all(case.family is Family.SCOPE for case in select(CATALOGUE, family="scope"))
    for names, family in ((["no-such"], None), ([], "no-such"), (["exact-radii"], "scope")):
        with pytest.raises(ac.InputError):
            select(CATALOGUE, names, family)


def test_a_curve_counts_seeds():
    cases = select(CATALOGUE, ["scaled-logits"])
    results = list(run_selftest(cases, 2, "quick", all_severities=True, audit=False))
    points = list(curves(results, cases))
    assert [point.severity for point in points] == list(cases[0].severities)
    assert all(point.seeds == 2 for point in points)
    assert points[0].share == 1.0
    assert points[0].factor == pytest.approx(10, rel=1e-2)


def test_the_command_says_what_was_found(capsys, tmp_path):
    path = tmp_path / "selftest.json"
    assert main(["selftest", "--case", "sqrt2-forgotten,exact-radii", "--json", str(path)]) == 0
    out = capsys.readouterr().out
    assert "1 of 1 faults detected, 0 missed, 0 false alarms on 1 sound subjects" in out
    assert "PIXEL" in out
    document = json.loads(path.read_text())
    assert document["counts"] == {"DETECTED": 1, "CLEAR": 1}
    assert [result["case"] for result in document["results"]] == ["sqrt2-forgotten", "exact-radii"]


def test_a_miss_fails_the_command(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "blind.toml").write_text('[[stage]]\nattack = "linearised"\npixels = 1\nclasses = 1\niterations = 1\n')
    assert main(["selftest", "--case", "gelu", "--plan", "blind.toml", "--no-audit"]) == 1
    assert "missed: gelu" in capsys.readouterr().out


def test_the_catalogue_can_be_listed(capsys):
    assert main(["selftest", "--list", "--family", "plumbing", "--json", "-"]) == 0
    captured = capsys.readouterr()
    listed = json.loads(captured.out)["cases"]
    assert {case["family"] for case in listed} == {"PLUMBING"}
    assert "map-shifted" in captured.err


@pytest.mark.parametrize(
    "options", [["--case", "nothing"], ["--family", "nothing"], ["--seeds", "0"], ["--case", "exact-radii", "--curve"]]
)
def test_bad_options_are_one_sentence(options, capsys):
    assert main(["selftest", *options]) == 2
    assert capsys.readouterr().err.count("\n") == 1
