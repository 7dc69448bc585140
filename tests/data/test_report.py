"""Issues and the warnings that carry them."""

import pickle

from regard.data.report import Issue, IssueWarning


def test_a_warning_reaches_another_process():
    warning = IssueWarning(Issue("I22", "fix", "two images have one name", "a.jpg", remedy="rename one"))
    again = pickle.loads(pickle.dumps(warning))
    assert again.issue == warning.issue
    assert str(again) == str(warning) == warning.issue.sentence
