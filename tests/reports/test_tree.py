import re
from xml.etree import ElementTree

import pytest

from engine.reports import tree as drawing
from engine.results import result_row
from tests.reports.builders import beam_result, beam_row


def drawn(nodes, **options):
    root = ElementTree.fromstring(drawing.tree_svg(nodes, "7", **options))
    groups = [each for each in root.iter() if each.tag.endswith("}g")]
    return root, groups


def boxes(groups):
    for group in groups:
        rect = next(each for each in group if each.tag.endswith("}rect"))
        yield tuple(float(rect.get(name)) for name in ("x", "y", "width", "height"))


def test_every_step_is_drawn_with_its_score_and_kind():
    nodes = beam_row()["tree"]
    _, groups = drawn(nodes)
    assert len(groups) == len(nodes)
    kinds = [group.get("class").split() for group in groups]
    for status in ("kept", "pruned", "final"):
        assert sum(status in kind for kind in kinds) == sum(node["status"] == status for node in nodes)
    assert sum("best" in kind for kind in kinds) == 5  # root and four steps
    assert sum("right" in kind for kind in kinds) == 1
    texts = ["".join(group.itertext()) for group in groups]
    assert all(f"{node['score']:.2f}" in text for node, text in zip(nodes[1:], texts[1:], strict=True))


@pytest.mark.parametrize(("num_beams", "width"), [(8, 4), (16, 4), (9, 3), (4, 1)])
def test_boxes_do_not_overlap_and_the_best_path_is_straight(num_beams, width):
    nodes = beam_row(depth=6, num_beams=num_beams, width=width)["tree"]
    root, groups = drawn(nodes)
    placed = sorted(boxes(groups))
    for index, (x, y, w, h) in enumerate(placed):
        for x2, y2, w2, h2 in placed[index + 1 :]:
            assert x + w <= x2 or x2 + w2 <= x or y + h <= y2 or y2 + h2 <= y
    best = [box[1] for box, group in zip(boxes(groups), groups, strict=True) if "best" in group.get("class")]
    assert set(best) == {min(y for _, y, _, _ in placed)}
    _, _, width, height = map(float, root.get("viewBox").split())
    assert all(x + w <= width and y + h <= height for x, y, w, h in placed)


@pytest.mark.parametrize("num_beams", [64, 256])
def test_large_trees_are_thinned_out_but_keep_the_best_path(num_beams):
    nodes = beam_row(depth=10, num_beams=num_beams)["tree"]
    _, groups = drawn(nodes)
    assert len({y for _, y, _, _ in boxes(groups)}) <= drawing.MAX_LANES
    assert sum("best" in group.get("class").split() for group in groups) == 11
    gathered = ["".join(group.itertext()) for group in groups if "gathered" in group.get("class")]
    missing = sum(int(re.match(r"\d+ steps? not drawn", text)[0].split()[0]) for text in gathered)
    assert missing + len(groups) - len(gathered) == len(nodes)


def test_nothing_is_gathered_where_it_fits():
    nodes = beam_row(depth=12, num_beams=16)["tree"]
    assert len(drawn(nodes, max_lanes=1000)[1]) == len(nodes)
    assert len(drawn(nodes, max_lanes=20)[1]) < len(nodes)


def test_a_chain_deeper_than_the_stack_is_drawn():
    nodes = [{"parent": None, "status": "root", "score": None, "text": "", "tokens": 0, "finish": None}]
    nodes += [
        {"parent": n, "status": "kept", "score": None, "text": "x", "tokens": 1, "finish": "step"} for n in range(1200)
    ]
    assert len(drawn(nodes)[1]) == 1201


def test_endings_tell_cut_off_and_wrong_answers():
    row = result_row(beam_result(depth=1, num_beams=3, width=1), with_tree=True)
    row["tree"][1]["finish"] = "length"
    text = drawing.tree_svg(row["tree"], "7")
    assert "cut off" in text
    assert text.count("✗") + text.count("✓") == 2
    assert "✓" not in drawing.tree_svg(row["tree"], None)


def test_step_text_is_escaped():
    nodes = beam_row(depth=1)["tree"]
    nodes[1]["text"] = '<script>alert("x")</script>\x00\ud800 & more'
    text = drawing.tree_svg(nodes)
    assert "<script" not in text
    assert "&lt;script" in text
    ElementTree.fromstring(text)
