"""The runner of pages: what is not as the page says is an error that names the line."""

import pytest

from tests.docs.walk import Walk, blocks_of, pieces

PAGE = """\
# A page

```python title="one.py"
print("a\\nb\\nc, and more")
```

```sh
python one.py
```

```text
a
...
c, ...
```

```diff title="one.py"
-print("a\\nb\\nc, and more")
+raise SystemExit(3)
```

```sh title="exit code 3"
python one.py
```
"""


def follow(page, folder):
    walk = Walk(folder, folder)
    for block in blocks_of(page):
        walk.follow(block)
    return walk


def test_a_page_is_followed(tmp_path):
    assert follow(PAGE, tmp_path).commands == 2
    assert (tmp_path / "one.py").read_text() == "raise SystemExit(3)\n"


@pytest.mark.parametrize(
    ("old", "new", "error"),
    [
        ("exit code 3", "exit code 2", "line 22: exit code 3"),
        ("```sh\n", '```sh title="exit code 1"\n', "line 7: exit code 0"),
        ("\na\n...\n", "\nz\n...\n", "line 11: not printed"),
        ("c, ...", "d, ...", "line 11: not printed"),
        ("a\n...\nc, ...", "c,\n...\nb", "line 11: not printed"),
        ("-print", "-printed", "line 17: found 0 times"),
    ],
)
def test_what_is_not_as_the_page_says_is_an_error(old, new, error, tmp_path):
    assert PAGE.count(old) == 1
    with pytest.raises(AssertionError, match=error):
        follow(PAGE.replace(old, new), tmp_path)


def test_gaps_are_lines_or_ends_of_lines():
    assert list(pieces("a\nb ...\nc\n...\nd\n")) == ["a\nb ", "c", "d"]
