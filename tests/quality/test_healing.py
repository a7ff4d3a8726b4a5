"""`HealingTrainer` on a tiny trained model: training, shared weights, interruptions."""

import os
import resource
import signal

import peft
import pytest
import torch
import transformers
from helpers.healing_runs import arguments, texts, trained_model, trainer
from helpers.language_models import language_model
from helpers.reads import HEAD

import ladderize
from ladderize import LadderError
from ladderize.quality import HealingTrainer
from ladderize.quality.healing.stop_signals import StopSignals
from ladderize.testing import eager_ladder


def logits_of(model):
    ids = torch.stack([example["input_ids"] for example in texts()[1]])
    with torch.no_grad():
        return model(ids).logits


def logged(run, name):
    return [log[name] for log in run.state.log_history if name in log]


class AtStep(transformers.TrainerCallback):
    """Does something in a step, after the weights have changed."""

    def __init__(self, step, action):
        self.step, self.action = step, action

    def on_optimizer_step(self, args, state, control, **_):  # noqa: ARG002
        if state.global_step + 1 == self.step:
            self.action()


# ---- what it learns


def test_a_ladder_is_healed(tmp_path):
    standard = trained_model()
    run = trainer(tmp_path, max_steps=40, logging_steps=10)
    before = run.evaluate()
    run.train()
    after = run.evaluate()
    assert before["eval_kl"] > 0.5
    assert after["eval_kl"] < 0.3 * before["eval_kl"]
    assert after["eval_agreement"] > before["eval_agreement"] + 0.1
    added = [each["eval_loss"] - each["eval_standard_loss"] for each in (before, after)]
    assert added[1] < 0.4 * added[0]
    assert after["eval_standard_loss"] == before["eval_standard_loss"]
    assert len(logged(run, "kl")) == 4 and logged(run, "kl") == pytest.approx(logged(run, "loss"))
    torch.testing.assert_close(logits_of(run.teacher), logits_of(standard))
    found = logits_of(run.model)
    with eager_ladder(ladderize.restore(run.model), HEAD["llama"]):
        torch.testing.assert_close(logits_of(run.model), found, rtol=1e-4, atol=1e-4)


def test_all_losses_and_accumulated_batches(tmp_path):
    """Two batches of two sequences are one of four; each loss is logged, and they add up."""
    weights = {"kl_weight": 0.5, "label_weight": 0.25, "stream_weight": 2.0, "temperature": 2.0}
    whole = trainer(tmp_path, max_steps=2, seed=3, **weights)
    whole.train()
    halves = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
    run = trainer(tmp_path, max_steps=2, seed=3, **halves, **weights)
    run.train()
    for name in ("loss", "kl", "label_loss", "stream_loss", "grad_norm"):
        assert logged(run, name) == pytest.approx(logged(whole, name), rel=1e-3)
    parts = zip(*(logged(run, name) for name in ("kl", "label_loss", "stream_loss")), strict=True)
    sums = [0.5 * kl + 0.25 * label + 2 * stream for kl, label, stream in parts]
    assert logged(run, "loss") == pytest.approx(sums, rel=1e-5)
    assert min(logged(run, "stream_loss")) > 1e-3


def test_reads_are_blended_at_first(tmp_path):
    """The first step has less damage than a ladder; evaluation always uses the ladder."""
    steps = {"max_steps": 4, "blend_steps": 2, "eval_strategy": "steps", "eval_steps": 1}
    run = trainer(tmp_path, learning_rate=0.0, **steps)
    whole = run.evaluate()["eval_kl"]
    run.train()
    first, second, *others = logged(run, "kl")
    assert 0 < first < 0.5 * second < 0.5 * min(others)
    assert logged(run, "eval_kl") == pytest.approx([whole] * 4, rel=1e-5)
    found = logits_of(run.model)
    with eager_ladder(ladderize.restore(run.model), HEAD["llama"]):
        torch.testing.assert_close(logits_of(run.model), found, rtol=1e-4, atol=1e-4)


# ---- the teacher


def test_the_teacher_shares_what_is_not_trained(tmp_path):
    model = trained_model()
    frozen = {"model.embed_tokens.weight", "model.layers.0.mlp.up_proj.weight"}
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name not in frozen)
    run = trainer(tmp_path, model, max_steps=1)
    run.train()
    theirs = dict(run.teacher.named_parameters())
    same = {name for name, each in model.named_parameters() if theirs[name] is each}
    assert same == frozen
    assert not any(each.requires_grad for each in theirs.values())
    torch.testing.assert_close(logits_of(run.teacher), logits_of(trained_model()))


def lora(model):
    settings = peft.LoraConfig(r=4, lora_alpha=8, target_modules="all-linear")
    return peft.get_peft_model(model, settings)


def test_the_teacher_of_lora(tmp_path):
    model = lora(trained_model())
    run = trainer(tmp_path, model)
    theirs = dict(run.teacher.named_parameters())
    twice = {name for name, each in model.named_parameters() if theirs[name] is not each}
    assert twice and all(".lora_" in name for name in twice)
    with torch.no_grad():
        for name in twice:
            model.get_parameter(name).fill_(1.0)
    torch.testing.assert_close(logits_of(run.teacher), logits_of(trained_model()))


# ---- how it ends, and goes on


def weights_of(run):
    return torch.cat([each.detach().flatten() for each in run.model.parameters()])


def test_a_run_that_is_stopped_by_sigterm_is_resumed(tmp_path):
    """Bit for bit as without a stop, whether stopped during or after blended reads."""
    settings = {"max_steps": 6, "blend_steps": 3, "label_weight": 0.5, "warmup_steps": 2}
    settings |= {"save_strategy": "steps", "save_steps": 100}
    (whole := trainer(tmp_path / "whole", **settings)).train()
    before = signal.getsignal(signal.SIGTERM)
    for step in (2, 5):
        run = trainer(tmp_path / "parts", **settings)
        run.add_callback(AtStep(step, lambda: os.kill(os.getpid(), signal.SIGTERM)))
        said = rf"stopped by SIGTERM after step {step} of 6\. The last .*checkpoint-{step}\."
        with pytest.raises(LadderError, match=said):
            run.train(resume_from_checkpoint=step > 2)
    assert signal.getsignal(signal.SIGTERM) is before
    resumed = trainer(tmp_path / "parts", **settings)
    resumed.train(resume_from_checkpoint=True)
    assert torch.equal(weights_of(resumed), weights_of(whole))
    assert logged(resumed, "loss") == logged(whole, "loss")
    assert (tmp_path / "parts" / "checkpoint-6").is_dir()
    done = trainer(tmp_path / "parts", **settings)
    done.train(resume_from_checkpoint=True)
    assert done.state.global_step == 6 and torch.equal(weights_of(done), weights_of(whole))


@pytest.mark.parametrize(
    ("number", "error"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit)]
)
def test_the_second_signal_ends_it_at_once(number, error):
    with StopSignals() as signals:
        os.kill(os.getpid(), signal.SIGTERM)
        assert signals.received is signal.SIGTERM
        with pytest.raises(error):
            os.kill(os.getpid(), number)


def test_a_loss_that_is_not_finite(tmp_path):
    run = trainer(tmp_path, save_strategy="steps", save_steps=1)
    run.add_callback(AtStep(2, lambda: run.model.lm_head.weight.data.fill_(torch.inf)))
    with pytest.raises(LadderError, match=r"The loss is not finite at step 3\. .*checkpoint-2\."):
        run.train()
    assert (tmp_path / "checkpoint-1" / "model.safetensors").is_file()


def test_a_gradient_that_is_not_finite(tmp_path):
    """It would be in the weights of the checkpoint."""
    model = trained_model()
    run = trainer(tmp_path, model, save_strategy="steps", save_steps=1)
    model.lm_head.weight.register_hook(lambda grad: grad / (run.state.global_step < 1))
    with pytest.raises(LadderError, match=r"A gradient is not finite at step 2\. .*checkpoint-1"):
        run.train()
    assert weights_of(run).isfinite().all()


@pytest.mark.parametrize("most", [2_000, 100_000], ids=["the weights", "the optimizer"])
def test_a_checkpoint_that_cannot_be_written(tmp_path, most):
    """The system refuses larger files, as it does on a full disk."""
    run = trainer(tmp_path, save_strategy="steps", save_steps=2)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    run.add_callback(AtStep(3, lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (most, -1))))
    said = r"checkpoint-4 cannot be written: .* The last checkpoint is .*checkpoint-2\."
    try:
        with pytest.raises(LadderError, match=said):
            run.train()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-2"]


# ---- what is refused


def test_models_that_cannot_be_healed(tmp_path):
    model = lora(trained_model())
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name and "layers.0.self_attn.q_proj" in name:
                parameter.add_(1)
    model.config.ladder = {"blocks": [1]}
    with pytest.raises(LadderError) as caught:
        trainer(tmp_path, model.requires_grad_(False))
    said = [str(blocker) for blocker in caught.value.blockers]
    assert len(said) == 3
    assert said[0].endswith("layers.0.self_attn.q_proj: its LoRA adapter 'default' is not zero")
    assert said[1].startswith("its weights are already those of a ladder: ")
    assert said[2] == "none of its parameters requires a gradient"
    encoder = transformers.T5Config(vocab_size=64, d_model=8, num_layers=1, d_ff=8, num_heads=1)
    with pytest.raises(LadderError, match="not a causal language model"):
        trainer(tmp_path, transformers.T5ForConditionalGeneration(encoder))
    settings = arguments(tmp_path)
    settings._n_gpu = 2
    with pytest.raises(LadderError, match="2 GPUs in one process are not supported: use torchrun"):
        HealingTrainer(language_model("llama"), settings)
    with pytest.raises(LadderError, match="blend_steps=-1 is below 0"):
        arguments(tmp_path, blend_steps=-1)
    with pytest.raises(LadderError, match="temperature=0 is not above 0"):
        arguments(tmp_path, temperature=0)
