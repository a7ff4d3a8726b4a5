"""`HealingTrainer` and `sensitivity` on two ranks: they learn, measure and end together."""

import os
import signal

import pytest
import torch
import torch.distributed as dist
from helpers.healing_runs import texts, trainer
from helpers.language_models import language_model
from helpers.ranks import mesh
from transformers import TrainerCallback

import ladderize
from ladderize import LadderError


def as_torchrun():
    rank, ranks = str(dist.get_rank()), str(dist.get_world_size())
    os.environ.update(RANK=rank, LOCAL_RANK=rank, WORLD_SIZE=ranks)


def logged(run, name):
    return [log[name] for log in run.state.log_history if name in log]


def healed(folder):
    as_torchrun()
    run = trainer(folder, max_steps=3, per_device_train_batch_size=2)
    run.train()
    weights = torch.cat([each.detach().flatten() for each in run.model.parameters()])
    assert isinstance(run.model_wrapped, torch.nn.parallel.DistributedDataParallel)
    return logged(run, "kl"), run.evaluate(), weights.numpy()


def test_two_ranks_heal_as_one_does(two_ranks, tmp_path):
    """Each takes half of a batch, and half of what is evaluated."""
    first, second = two_ranks.run(healed, tmp_path)
    run = trainer(tmp_path / "one", max_steps=3)
    run.train()
    after = run.evaluate()
    weights = torch.cat([each.detach().flatten() for each in run.model.parameters()])
    for found in (first, second):
        for name in ("eval_kl", "eval_loss", "eval_standard_loss", "eval_agreement"):
            assert found[1][name] == pytest.approx(after[name], rel=1e-2)
        assert found[0] == pytest.approx(logged(run, "kl"), rel=1e-2)
    assert (first[2] == second[2]).all()
    torch.testing.assert_close(torch.from_numpy(first[2]), weights, rtol=1e-2, atol=1e-3)


def fitted(folder, number):
    run = trainer(folder)
    rows = torch.stack([each["input_ids"] for each in texts()[0]])
    names = run.fit([{"input_ids": rows.split(100)[number]}]).weights
    found = torch.cat([run.model.get_parameter(name).flatten() for name in names])
    return found.detach().numpy()


def fitted_on_own_text(folder):
    as_torchrun()
    return fitted(folder, dist.get_rank())


def test_all_ranks_get_the_weights_that_the_first_one_fits(two_ranks, tmp_path):
    first, second = two_ranks.run(fitted_on_own_text, tmp_path)
    assert (first == second).all()
    wanted = torch.from_numpy(fitted(tmp_path, 0))
    torch.testing.assert_close(torch.from_numpy(first), wanted)


class OnSecond(TrainerCallback):
    """Of the second rank alone, in the second step."""

    def __init__(self, action):
        self.action = action

    def on_step_begin(self, args, state, control, **_):  # noqa: ARG002
        if state.global_step == 1 and dist.get_rank() == 1:
            self.action()


def stopped(folder, how):
    as_torchrun()
    run = trainer(folder, save_strategy="steps", save_steps=1, per_device_train_batch_size=2)
    actions = {
        "signal": lambda: os.kill(os.getpid(), signal.SIGTERM),
        "loss": lambda: run.model.lm_head.weight.data.fill_(torch.inf),
    }
    run.add_callback(OnSecond(actions[how]))
    try:
        run.train()
    except LadderError as error:
        return error.summary
    return "no error"


@pytest.mark.parametrize(
    ("how", "said"),
    [("signal", "The run was stopped by "), ("loss", "The loss is not finite at step 2. ")],
)
def test_all_ranks_stop_when_one_does(two_ranks, tmp_path, how, said):
    found = two_ranks.run(stopped, tmp_path, how)
    last = {"signal": 2, "loss": 1}[how]
    for each in found:
        assert each.startswith(said), each
        assert each.endswith(f"checkpoint-{last}.")


# ---- sensitivity


IDS = torch.randint(0, 64, (2, 8), generator=torch.Generator().manual_seed(0))


def measured(**options):
    model = language_model("llama")
    return ladderize.sensitivity(model, [{"input_ids": IDS}], width=2, **options)


def measured_twice(notes):
    """Interrupted, then whole; and how many sets were known after each step of both."""
    counts = []

    def count(done, _):
        counts.append(done)
        if len(counts) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measured(mesh=mesh(), notes=notes, on_progress=count)
    return measured(mesh=mesh(), notes=notes, on_progress=count), counts


def test_two_ranks_measure_what_one_does(two_ranks, tmp_path):
    """The first one alone has notes of the interrupted run, and both go on from them."""
    notes = tmp_path / "notes"
    (first, counts), (second, others) = two_ranks.run(measured_twice, notes)
    wanted = measured()
    assert first == second and counts == others
    assert counts[:3] == [1, 2, 3] and not notes.exists()
    assert [each.blocks for each in first.sets] == [each.blocks for each in wanted.sets]
    assert first.references.keys() == wanted.references.keys()
    for found, alone in ((first.sets, wanted.sets), (first.blocks[1:], wanted.blocks[1:])):
        for name in ("kl", "loss", "share"):
            values = [getattr(each, name) for each in alone]
            assert [getattr(each, name) for each in found] == pytest.approx(values, rel=1e-4)
