"""The page of faults and claims: every id has an outcome and tests that exist, and outcomes are those of the tests."""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import reliability_page
from reliability_page import GROUPS, PAGE, Fault, page, read_faults, result_of

TESTS = Path(__file__).parent
COUNTS = {
    "images": 32,
    "annotations": 51,
    "settings": 14,
    "checkpoints": 22,
    "training": 22,
    "serving": 30,
    "numbers": 22,
}


def test_all_ids_are_there():
    groups = read_faults()
    assert list(groups) == list(GROUPS) == list(COUNTS)
    for group, letter in zip(COUNTS, "IACKTSN", strict=True):
        assert [fault.id for fault in groups[group]] == [f"{letter}{k:02}" for k in range(1, COUNTS[group] + 1)]
    assert sum(COUNTS.values()) == 171 + 22
    assert all(fault.what and fault.outcome and fault.tests for rows in groups.values() for fault in rows)


def test_all_tests_exist():
    for fault in (fault for rows in read_faults().values() for fault in rows):
        for test in fault.tests:
            file, _, name = test.partition("::")
            body = ast.parse((TESTS / file).read_text()).body
            names = [node.name for node in body if isinstance(node, (ast.FunctionDef, ast.ClassDef))]
            function, bracket, _ = name.partition("[")
            found = [one for one in names if one.startswith(function or ("test_", "Test"))]
            assert (function in found) if bracket else found, f"{fault.id}: {test}"


def test_outcomes_and_page():
    one, two = (
        Fault("T01", "a", "b", ("x.py::test_a", "x.py::test_b")),
        Fault("T02", "c", "d", ("x.py::test_c",)),
    )
    kept = {"x.py::test_a": {"passed": 3, "date": "2026-01-02"}, "x.py::test_b": {"passed": 1, "failed": 2}}
    assert result_of(one, kept) == "2 failed, 4 passed" and result_of(two, kept) == "not run: 1"
    text = page({"training": [one, two]}, {"x.py::test_a": kept["x.py::test_a"]})
    assert "2 faults, each with its outcome; tests that passed show 1 of them. Not run: T02." in text
    claims = page({"training": [one], "numbers": [two]}, {})
    assert "1 faults, each with its outcome, and 1 claims about numbers" in claims and "| id | claim | tol" in claims
    assert "| T01 | a | b | `x.py::test_a`<br>`x.py::test_b` | 3 passed, not run: 1 |" in text


def test_tests_are_run_by_the_beginning_of_their_names():
    tests = ["first_free", "a_folder_is_not_made_under_the_name_of_a_file[f"]
    tests = [f"test_safe_files.py::test_{name}" for name in tests]
    tests.append("studies/test_paired_tests.py::test_a_case_by_hand")  # a folder with a conftest of its own
    code = f"import json, reliability_page; print('\\n' + json.dumps(reliability_page.run_tests({tests}, False)))"
    finished = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=reliability_page.ROOT,
        env={**os.environ, "PYTHONPATH": f"{TESTS.parent / 'docs'}:{TESTS.parent / 'src'}"},
    )  # fmt: skip
    given = json.loads(finished.stdout.splitlines()[-1])
    assert given == {test: {"passed": 1} for test in tests}


def test_the_page_is_that_of_the_files():
    kept = json.loads(PAGE.with_suffix(".json").read_text())
    assert PAGE.read_text() == page(read_faults(), kept)
