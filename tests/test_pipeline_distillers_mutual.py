"""Deep mutual learning: its formula by hand, who is taught by whom through which modules, and resuming."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from training_parts import (
    CLASSES,
    EPOCHS,
    SAMPLES,
    SIZE,
    assert_resumes,
    batch,
    config,
    mixed_batch,
    network,
    run,
    term,
)

from pipeline.distillers.mutual import Mutual
from pipeline.distillers.teacher import Network
from pipeline.errors import RecipeError
from pipeline.recipe import LossTerm

DML = (term("cross_entropy"), term("kd", temperature=1.0))


def mutual(count: int = 3, terms: tuple[LossTerm, ...] = DML, **more: int) -> Mutual:
    """A student with 4 channels, and peers with 6, 7, ..."""
    peers = [network(seed, width=5 + seed, dropout=0.0) for seed in range(1, count)]
    sizes = {"samples": SAMPLES, "num_classes": CLASSES} | more
    return Mutual(network(dropout=0.0), peers, terms, input_size=SIZE, **sizes)


def logits(module: torch.nn.Module, images: torch.Tensor) -> torch.Tensor:
    return module((images.float() / 255 - 0.5) / 0.25)


@pytest.mark.parametrize("count", [2, 3, 4])
def test_it_is_the_papers_loss(count: int) -> None:
    learner = mutual(count)
    images, tensors = batch()
    weighted, values = learner(images, tensors, epoch=0, taught=True)
    outputs = [logits(module, images) for module in learner.networks]
    for k, own in enumerate(outputs):
        prefix = f"peer{k}/" if k else ""
        labels = F.cross_entropy(own, tensors["target"])
        p = [F.softmax(other, 1) for other in outputs]
        divergences = [(p[j] * (p[j].log() - p[k].log())).sum(1).mean() for j in range(count) if j != k]
        torch.testing.assert_close(weighted[f"{prefix}cross_entropy"], labels)
        torch.testing.assert_close(weighted[f"{prefix}kd"], torch.stack(divergences).sum() / (count - 1))
    assert weighted.keys() == values.keys() and not any(value.requires_grad for value in values.values())


def test_mixed_images_teach_by_their_mixed_labels_and_by_one_another(tmp_path: Path) -> None:
    learner = mutual(2)
    images, tensors = mixed_batch()
    weighted, _ = learner(images, tensors, epoch=0, taught=True)
    own, other = (logits(module, images).log_softmax(1) for module in learner.networks)
    torch.testing.assert_close(weighted["cross_entropy"], -(tensors["target"] * own).sum(1).mean())
    torch.testing.assert_close(weighted["peer1/cross_entropy"], -(tensors["target"] * other).sum(1).mean())
    torch.testing.assert_close(weighted["kd"], (other.exp() * (other - own)).sum(1).mean())
    settings = config(augment={"seed": 3, "mixup": 1.0, "cutmix": 1.0})
    state, result = run(tmp_path, lambda: mutual(2), settings)
    assert set(result.curve[-1]["terms"]) == {"cross_entropy", "kd", "peer1/cross_entropy", "peer1/kd"}
    assert all(bool(value.isfinite().all()) for value in state.values())


def test_who_teaches_gets_no_gradient() -> None:
    learner = mutual(3)
    weighted, _ = learner(*batch(), epoch=0, taught=True)
    for k, module in enumerate(learner.networks):
        learner.zero_grad()
        weighted[f"peer{k}/kd" if k else "kd"].backward(retain_graph=True)
        touched = [any(p.grad is not None for p in other.parameters()) for other in learner.networks]
        assert touched == [other is module for other in learner.networks]


def test_all_are_trained_at_once_and_one_is_shipped(tmp_path: Path) -> None:
    learner = mutual(3)
    before = [{name: value.clone() for name, value in each.state_dict().items()} for each in learner.networks]
    state, result = run(tmp_path, lambda: learner, config())
    assert len({first["5.weight"].shape for first in before}) == 3, "they begin with weights of their own"
    for old, module in zip(before, learner.networks, strict=True):
        assert not torch.equal(old["5.weight"], module.state_dict()["5.weight"])
    assert state.keys() == network().module.state_dict().keys(), "nothing of the peers is kept"
    assert result.teacher_share is None and len(result.curve) == EPOCHS
    row = result.curve[0]
    assert set(row["terms"]) == {f"{who}{loss}" for who in ("", "peer1/", "peer2/") for loss in ("cross_entropy", "kd")}
    assert set(row["gradient_norms"]) == {"cross_entropy", "kd"}, "how hard the student's own terms pull"


FEATURES = {
    "hint": {"student": "0", "teacher": "2"},
    "attention_transfer": {"student": ["0", "1"], "teacher": ["1", "2"]},
    "hierarchical_context": {"student": ["0"], "teacher": ["2"]},
    "rkd": {"student": "2", "teacher": "0"},
    "pkt": {"student": "2", "teacher": "2"},
    "review_kd": {"student": ["0", "2"], "teacher": ["0", "2"]},
    "similarity_preserving": {"student": "1", "teacher": "1"},
}


@pytest.mark.parametrize("name", FEATURES)
def test_features_of_peers(name: str) -> None:
    terms = (term("cross_entropy"), term(name, 0.5, **FEATURES[name]))
    learner = mutual(3, terms)
    weighted, _ = learner(*batch(), epoch=0, taught=True)
    assert set(weighted) >= {name, f"peer1/{name}", f"peer2/{name}"}
    torch.stack(tuple(weighted.values())).sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in learner.parameters() if p.grad is not None)


def test_the_student_is_read_where_student_says_and_peers_where_teacher_says() -> None:
    """Of two networks with other names each teaches the other; `student` and `teacher` follow the network."""
    peer = network(1)
    renamed = torch.nn.Sequential()
    for name, part in zip(("a", "b", "c", "d", "e", "f"), peer.module.children(), strict=True):
        renamed.add_module(name, part)
    terms = (term("cross_entropy"), term("hint", student="0", teacher="b", adapter="none"))
    learner = Mutual(
        network(dropout=0.0), [Network(module=renamed, mean=(0.5,), std=(0.25,))], terms, input_size=SIZE
    )  # fmt: skip
    images, tensors = batch()
    weighted, _ = learner(images, tensors, epoch=0, taught=True)
    inputs = (images.float() / 255 - 0.5) / 0.25
    own, other = learner.student[0](inputs), renamed.b(renamed.a(inputs))  # pyright: ignore
    torch.testing.assert_close(weighted["hint"], F.mse_loss(own, other))
    torch.testing.assert_close(weighted["peer1/hint"], weighted["hint"])
    for terms, line in (
        ((term("hint", student="9", teacher="b"),), "distill.losses: student: the network has no module '9'"),
        (
            (term("hint", student="0", teacher="0"),),
            "distill.losses: teacher, in peer 1: the network has no module '0'",
        ),
    ):
        with pytest.raises(RecipeError) as caught:
            Mutual(network(), [Network(module=renamed, mean=(0.5,), std=(0.25,))], terms, input_size=SIZE)
        assert str(caught.value).startswith(line) and "\n" not in str(caught.value)


def test_features_of_other_widths_need_an_adapter() -> None:
    with pytest.raises(RecipeError) as caught:
        mutual(2, (term("cross_entropy"), term("hint", student="0", teacher="0", adapter="none")))
    assert str(caught.value) == (
        "distill.losses: loss 'hint': features are 4x8x8 in the student and 6x8x8 in the teacher; set adapter = 'auto' "
        "or name modules "
        "of equal shape"
    )


def test_teaching_ends_at_its_epoch_or_on_a_plateau() -> None:
    learner = mutual(2, (term("cross_entropy"), term("kd", until_epoch=2)))
    assert [learner.taught(epoch, []) for epoch in range(4)] == [True, True, False, False]
    weighted, _ = learner(*batch(), epoch=2, taught=False)
    assert set(weighted) == {"cross_entropy", "peer1/cross_entropy"}
    learner = mutual(2, end_on_plateau=2)
    assert learner.taught(3, [0.5, 0.6, 0.6]) and not learner.taught(4, [0.5, 0.6, 0.6, 0.5])
    assert not learner.taught(5, [0.5, 0.6, 0.6, 0.5, 0.9]), "ended for good"


@pytest.mark.parametrize("changes", [{}, {"precision": "bf16", "ema": 0.5}, {"precision": "fp16", "clip_norm": 1.0}])
def test_interrupted_anywhere_it_ends_with_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, object]
) -> None:
    terms = (*DML, term("hint", 0.1, student="0", teacher="1"))
    assert_resumes(
        monkeypatch,
        tmp_path,
        lambda: Mutual(network(), [network(1, width=6), network(2)], terms, input_size=SIZE),  # with dropout
        config(**changes),
    )


def test_an_unlabelled_image_is_learnt_from_by_the_others_answers_alone() -> None:
    learner = mutual(2)
    images, tensors = batch()
    weighted, _ = learner(images, tensors | {"target": torch.full((8,), -1)}, epoch=0, taught=True)
    assert weighted["cross_entropy"] == weighted["peer1/cross_entropy"] == 0 and weighted["kd"] > 0
