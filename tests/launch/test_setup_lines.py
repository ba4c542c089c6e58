"""Lines of shell that bash reads before a job runs them."""

import pytest

from dsv3_plugin.errors import UserError
from dsv3_plugin.launch.setup_lines import refuse_unreadable


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("if [ -e x ]; then", r"the line if \[ -e x \]; then \(syntax error: unexpected end of fi"),
        ('module load "cuda', "unexpected EOF while looking for matching"),
        ("module load cuda)", "syntax error near unexpected token"),
    ],
)
def test_a_line_that_bash_cannot_read_is_refused(line, why):
    with pytest.raises(UserError, match=why) as error:
        refuse_unreadable(["module load gcc", line], "mine")
    assert str(error.value).startswith(f"launch.setup of mine: bash cannot read the line {line} (")


def test_no_line_is_run(tmp_path):
    refuse_unreadable([f"touch {tmp_path}/made", "source nowhere; exit 3"], "mine")
    assert not [*tmp_path.iterdir()]


def test_where_no_bash_is_nothing_is_known(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    refuse_unreadable(["if"], "mine")
