"""The losses of healing, against plain formulas, without a float32 copy of all logits."""

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ladderize import LadderError
from ladderize.quality.healing import distillation
from ladderize.quality.healing.distillation import DistillationLoss

T = 2.0


@pytest.fixture(params=[2**24, 33], ids=["one chunk", "chunks of three rows"])
def chunks(request, monkeypatch):
    monkeypatch.setattr(distillation, "_WORDS_PER_CHUNK", request.param)


def outputs(seed, requires_grad=False):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(2, 5, 11, generator=generator, dtype=torch.float64)
    states = [torch.randn(2, 5, 4, generator=generator, dtype=torch.float64) for _ in range(4)]
    for tensor in (logits, *states):
        tensor.requires_grad_(requires_grad)
    return SimpleNamespace(logits=logits, hidden_states=tuple(states))


LABELS = torch.tensor([[1, 2, 3, 4, 5], [6, 7, 8, 0, 0]])
MASK = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])


def by_hand(student, teacher):
    """In float64, over lists of positions: the second text ends after its third token."""
    here = [(0, i) for i in range(5)] + [(1, i) for i in range(2)]
    pairs = [(student.logits[b, i], teacher.logits[b, i]) for b, i in here]
    p = [(F.softmax(s / T, 0), F.softmax(t / T, 0)) for s, t in pairs]
    kl = sum((t * (t / s).log()).sum() * T**2 for s, t in p) / len(here)
    known = [(b, i, LABELS[b, i + 1]) for b, i in here if i < 4]
    label = sum(-F.log_softmax(student.logits[b, i], 0)[word] for b, i, word in known) / len(known)
    rows = tuple(zip(*here, strict=True))
    layers = list(zip(student.hidden_states, teacher.hidden_states, strict=True))[1:]
    ratios = [((s - t)[rows].norm(dim=1) / t[rows].norm(dim=1)).square().mean() for s, t in layers]
    return kl, label, sum(ratios) / len(ratios)


@pytest.mark.parametrize("weights", [(1, 0, 0), (1, 0.5, 0.25), (0, 1, 0)])
@pytest.mark.usefixtures("chunks")
def test_the_loss_and_its_gradient(weights):
    teacher, student, same = outputs(0), outputs(1, True), outputs(1, True)
    expected = by_hand(same, teacher)
    parts = DistillationLoss(T, *weights)(student, teacher, LABELS, MASK)
    found = parts.kl, parts.label, parts.stream
    for mine, theirs, weight in zip(found, expected, (1, 1, weights[2]), strict=True):
        assert mine.item() == pytest.approx(theirs.item() if weight else 0, rel=1e-5)
    total = sum(w * part for w, part in zip(weights, expected, strict=True))
    assert parts.total.item() == pytest.approx(total.item(), rel=1e-5)
    parts.total.backward()
    total.backward()
    torch.testing.assert_close(student.logits.grad, same.logits.grad, rtol=1e-4, atol=1e-7)
    assert student.logits.grad[1, 2:].count_nonzero() == 0  # padding
    if weights[2]:
        mine, theirs = student.hidden_states[3].grad, same.hidden_states[3].grad
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-7)


def test_labels_say_what_is_not_counted():
    """-100 for the first words, as for a prompt, is the same as starting after them."""
    teacher, student = outputs(0), outputs(1)
    labels = LABELS[:1].clone()
    labels[:, :3] = -100
    both = [SimpleNamespace(logits=each.logits[:1]) for each in (student, teacher)]
    ends = [SimpleNamespace(logits=each.logits[:, 2:]) for each in both]
    found = DistillationLoss(label_weight=1)(*both, labels)
    expected = DistillationLoss(label_weight=1)(*ends, LABELS[:1, 2:])
    assert found.kl.item() == pytest.approx(expected.kl.item(), rel=1e-6)
    assert found.label.item() == pytest.approx(expected.label.item(), rel=1e-6)


class WideTensors(TorchDispatchMode):
    """Notes the sizes of all float32 tensors that are made."""

    def __init__(self):
        super().__init__()
        self.sizes = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        made = [each for each in tree_leaves(out) if isinstance(each, torch.Tensor)]
        self.sizes |= {each.numel() for each in made if each.dtype is torch.float32}
        return out


def test_no_copy_of_all_logits_in_float32(monkeypatch):
    """Nor do the chunks' copies stay for the backward pass."""
    monkeypatch.setattr(distillation, "_WORDS_PER_CHUNK", 33)
    both = outputs(1), outputs(0)
    for each in both:
        each.logits = each.logits.bfloat16().requires_grad_()
    kept = []

    def keep(tensor):
        kept.append(tensor.numel() if tensor.dtype is torch.float32 else 0)
        return tensor

    with WideTensors() as made:
        with saved_tensors_hooks(keep, lambda tensor: tensor):
            loss = DistillationLoss(label_weight=1)(*both, LABELS).total
        loss.backward()
    assert max(made.sizes) == 33  # three rows of the ten
    assert max(kept) <= LABELS.numel()


def test_numbers_that_are_not_possible():
    with pytest.raises(LadderError) as caught:
        DistillationLoss(temperature=0, kl_weight=0, label_weight=-1)
    said = [str(blocker) for blocker in caught.value.blockers]
    assert said == ["label_weight=-1 is below 0", "temperature=0 is not above 0"]
    with pytest.raises(LadderError, match="kl_weight, label_weight, stream_weight are all 0"):
        DistillationLoss(kl_weight=0)
    with pytest.raises(LadderError, match="stream_weight=nan is below 0"):
        DistillationLoss(stream_weight=float("nan"))
