"""Prompts as conditions: their file, their groups, and the images that stand for each other."""

import pytest
import torch

from sit_rl.files.prompts import read_prompts
from sit_rl.models.conditions import Conditions

GROUPED = Conditions(["a", "b", "c", "d", "e"], ["x", "y", "x", "x", "y"])


def test_classes_are_their_own_groups():
    """As before there were groups: image i has class i mod n, and a new image has the class of the old one."""
    classes = Conditions.numbered(3)
    assert classes.balanced(7).tolist() == [0, 1, 2, 0, 1, 2, 0] and classes.balanced(2, first=4).tolist() == [1, 2]
    old = torch.tensor([2, 0, 0, 1])
    for first in (0, 1, 17):
        assert torch.equal(classes.renewed(old, first), old)
    assert classes.group_count == len(classes) == 3 and torch.equal(classes.groups, torch.arange(3))


def test_groups_are_equally_frequent_and_their_prompts_take_turns():
    drawn = GROUPED.balanced(12)
    assert GROUPED.groups[drawn].tolist() == [0, 1] * 6
    assert drawn.tolist() == [0, 1, 2, 4, 3, 1, 0, 4, 2, 1, 3, 4]


def test_a_new_image_is_of_the_old_ones_group():
    old = torch.tensor([1, 0, 4, 3, 3])
    seen = set()
    for step in range(6):
        new = GROUPED.renewed(old, first=step * len(old))
        assert torch.equal(GROUPED.groups[new], GROUPED.groups[old])
        seen |= set(new.tolist())
    assert seen == set(range(5))
    assert GROUPED.renewed(old, 0).tolist() == [1, 0, 4, 2, 3]  # within a step the prompts of a group take turns


def test_another_order_or_group_is_another_identity():
    names, groups = list(GROUPED.names), ["x", "y", "x", "x", "y"]
    others = [Conditions(names[::-1], groups), Conditions(names), Conditions(names, ["x", "y", "x", "x", "x"])]
    assert len({each.identity for each in (GROUPED, *others)}) == 4
    assert Conditions(names, groups).identity == GROUPED.identity


def test_a_file_of_prompts(tmp_path):
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"prompt": "a cube", "group": 3, "seed": 1}\n\n{"prompt": "ein Würfel", "group": "3"}\n')
    prompts = read_prompts(path)
    assert prompts.texts == ("a cube", "ein Würfel") and prompts.groups == ("3", "3")
    path.write_text('{"prompt": "a cube"}')
    assert read_prompts(path).groups is None


@pytest.mark.parametrize(
    "content, told",
    [
        (b"", "has no prompts; write one a line"),
        (b"\n \n", "has no prompts"),
        (b'{"prompt": "a"}\n{"prompt": ', "line 2 is not JSON"),
        (b'["a"]', "line 1 is .* it must be a table with text"),
        (b'{"text": "a"}', "line 1 is .* it must be a table with text"),
        (b'{"prompt": " "}', "line 1 is .* it must be a table with text"),
        (b'{"prompt": 3}', "line 1 is .* it must be a table with text"),
        (b'{"prompt": "a"}\n\n{"prompt": "b"}\n{"prompt": "a"}', "line 4 repeats the prompt of line 1"),
        (b'{"prompt": "a", "group": "x"}\n{"prompt": "b"}', "line 2 has no group, unlike the lines before"),
        (b'{"prompt": "a"}\n{"prompt": "b", "group": 1}', "line 2 has a group, unlike the lines before"),
        (b'{"prompt": "a", "group": [1]}', "line 1 has group .*; it must be a name or a number"),
        (b'{"prompt": "a", "group": true}', "it must be a name or a number"),
        (b'{"prompt": "\\ud800"}', "line 1 has half a surrogate pair"),
        (b'{"prompt": "\xff"}', "is not UTF-8 text"),
        (b"[" * 100_000, "line 1 is not JSON"),
        (b'{"prompt": "a", "prompt": "b"}', "line 1 is not JSON .a key stands twice in one table"),
    ],
)
def test_another_file_is_one_sentence(tmp_path, content, told):
    path = tmp_path / "prompts.jsonl"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=told) as raised:
        read_prompts(path)
    assert str(raised.value).startswith(f"--prompts {path}") and "\n" not in str(raised.value)


def test_no_file_is_one_sentence(tmp_path):
    for path in (tmp_path / "gone.jsonl", tmp_path):
        with pytest.raises((ValueError, OSError), match=f"--prompts {path} (does not exist|is a folder)"):
            read_prompts(path)
