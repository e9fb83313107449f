"""Tasks of LightningModules: their own steps, optimisers and schedules, without a Trainer."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.lr_scheduler import ExponentialLR, OneCycleLR, ReduceLROnPlateau
from torch.optim.optimizer import register_optimizer_step_pre_hook
from torch.utils.data import DataLoader, TensorDataset

import autocompress as ac
from autocompress.engine.identity import identity
from autocompress.engine.prepare import prepare
from autocompress.engine.settings import Settings
from autocompress.errors import TaskError
from autocompress.training.loop import Trainer
from tests.training.test_optimization import rates

lightning = pytest.importorskip("lightning")
__all__ = ["rates"]

INPUTS, LABELS = torch.randn(96, 12), torch.randint(0, 3, (96,))


def loader(batch_size: int = 16) -> DataLoader[Any]:
    return DataLoader(TensorDataset(INPUTS, LABELS), batch_size)


class Module(lightning.LightningModule):
    """Logs, counts its batches and weighs classes, as modules do."""

    def __init__(self) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.net = nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 3))
        self.criterion = nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0, 1.0]))
        self.seen: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: Any, batch_idx: int) -> dict[str, Tensor]:
        self.seen.append(batch_idx)
        loss = self.criterion(self(batch[0]), batch[1])
        self.log("train/loss", loss, prog_bar=True)
        self.log_dict({"rate": 0.5})
        return {"loss": loss}

    def configure_optimizers(self) -> Any:
        return torch.optim.RMSprop(self.parameters(), 0.01)


def task_of(module: Any, **options: Any) -> ac.Task:
    usual = {"train": loader(), "val": loader(), "recipe": ac.Recipe(epochs=2)}
    return ac.from_lightning(module, **{**usual, **options})


def test_its_own_step_and_optimizer_train_with_the_recipes_schedule(rates: list[list[float]]) -> None:
    module = Module()
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    task = task_of(module)
    kinds: list[type] = []
    handle = register_optimizer_step_pre_hook(lambda optimizer, *_: kinds.append(type(optimizer)))
    trainer = Trainer(task, 2)
    trainer.fit(model := task.model(), 2)
    handle.remove()
    assert kinds == [torch.optim.RMSprop] * 12
    assert max(rate for step in rates for rate in step) == pytest.approx(0.01, rel=0.05)
    assert trainer.criterion.training.module.seen == list(range(12))
    assert trainer.history[-1]["loss"] < trainer.history[0]["loss"]
    assert not torch.equal(model.net[0].weight, before["net.0.weight"])
    assert all(torch.equal(before[name], tensor) for name, tensor in module.state_dict().items())
    assert module.seen == []


def test_its_weights_are_the_references_unless_it_is_to_be_trained() -> None:
    module = Module()
    for trained in (True, False):
        task = task_of(module, trained=trained)
        assert torch.equal(task.model().net[0].weight, module.net[0].weight)
        assert (task.weights is not None) is trained
    assert (task.name, task.model_name) == ("module", "Module")


def per_epoch(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    return {"optimizer": optimizer, "lr_scheduler": ExponentialLR(optimizer, 0.5)}


def per_step(optimizer: torch.optim.Optimizer) -> Any:
    return [optimizer], [{"scheduler": ExponentialLR(optimizer, 0.9), "interval": "step", "frequency": 2}]


@pytest.mark.parametrize(
    ("configure", "wanted"),
    [
        (per_epoch, [0.1] * 6 + [0.05] * 6),
        (per_step, [0.1 * 0.9 ** (step // 2) for step in range(12)]),
        (lambda optimizer: ([optimizer], [ExponentialLR(optimizer, 0.5)]), [0.1] * 6 + [0.05] * 6),
    ],
)
def test_schedules_go_on_by_steps_or_epochs_over_all_trainings(
    configure: Any, wanted: list[float], rates: list[list[float]]
) -> None:
    class Scheduled(Module):
        def configure_optimizers(self) -> Any:
            return configure(torch.optim.SGD(self.parameters(), 0.1))

    task = task_of(Scheduled())
    trainer = Trainer(task, 2)
    session = ac.Alcn(initial_ratio=0.5).start(task.model(), task)
    trainer.fit(session.model, 0.67, session)
    trainer.fit(session.finish().model, 1.33)
    assert [step[0] for step in rates] == pytest.approx(wanted)


def test_a_schedule_may_ask_the_trainer_for_its_steps(rates: list[list[float]]) -> None:
    class Cycled(Module):
        def configure_optimizers(self) -> Any:
            optimizer = torch.optim.AdamW(self.parameters(), 0.1)
            steps = self.trainer.estimated_stepping_batches
            assert steps // self.trainer.max_epochs in (6, 100)
            schedule = OneCycleLR(optimizer, 0.2, total_steps=steps)
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    Trainer(task_of(Cycled()), 2).fit(task_of(Cycled()).model(), 2)
    assert max(step[0] for step in rates) == pytest.approx(0.2, rel=0.1)
    assert rates[0][0] == pytest.approx(0.2 / 25)
    assert len(rates) == 12


def test_parameters_keep_the_settings_that_those_of_their_name_have() -> None:
    class Grouped(Module):
        def configure_optimizers(self) -> Any:
            biases = [p for name, p in self.named_parameters() if name.endswith("bias")]
            weights = [p for name, p in self.named_parameters() if name.endswith("weight")]
            return torch.optim.AdamW(
                [{"params": weights, "lr": 0.1}, {"params": biases, "weight_decay": 0.0}],
                lr=0.2,
                weight_decay=0.3,
            )

    task = task_of(Grouped())
    session = ac.Alcn(initial_ratio=0.5).start(task.model(), task)
    optimization = Trainer(task, 1)._optimization(session, torch.device("cpu"))
    settings = {
        name: (group["initial_lr"], group["weight_decay"])
        for group in optimization.optimizer.param_groups
        for name in group["param_names"]
    }
    assert settings["net.0.weight"] == settings["net.2.weight"] == (0.1, 0.3)
    assert settings["net.0.bias"] == (0.2, 0.0)
    # Gates must not decay, whatever the first group does.
    assert settings["alcn_ratio_logit"] == (0.1, 0.0)


def test_a_network_inside_of_the_module_is_compressed_by_name() -> None:
    class Inner(Module):
        def forward(self, x: Tensor) -> Tensor:
            raise NotImplementedError

        def training_step(self, batch: Any) -> Tensor:
            return F.cross_entropy(self.net(batch[0]), batch[1])

    module = Inner()
    task = task_of(module, network="net")
    assert isinstance(task.model(), nn.Sequential)
    done = ac.compress(task.model(), task, ac.Alcn(initial_ratio=0.5))
    assert sum(p.numel() for p in done.model.parameters()) < sum(p.numel() for p in module.net.parameters())
    with pytest.raises(
        TaskError, match=r"network must name a sub-module \('net', 'criterion'\) but got 'body'"
    ):
        task_of(module, network="body")


def test_a_step_that_goes_past_what_is_compressed_is_refused_before_training() -> None:
    class Past(Module):
        def training_step(self, batch: Any) -> Tensor:
            return F.cross_entropy(self.net(batch[0]), batch[1])

    class Decayed(Module):
        def training_step(self, batch: Any) -> Tensor:
            decay = sum(p.square().sum() for p in self.parameters())
            return F.cross_entropy(self(batch[0]), batch[1]) + decay

    class Annealed(Module):
        def training_step(self, batch: Any) -> Tensor:
            return F.cross_entropy(self(batch[0]), batch[1]) / (1 + self.current_epoch)

    for module, message in (
        (
            Past(),
            r"^training_step must reach the network as self\(\.\.\.\), or as the sub-module that network=",
        ),
        (Decayed(), r"^training_step must reach the network as self"),
        (Annealed(), "there is no Trainer that could say its 'current_epoch'"),
    ):
        with pytest.raises(TaskError, match=message) as refused:
            prepare(task_of(module), Settings(objectives=("bytes",)))
        assert "\n" not in str(refused.value)


class TwoOptimizers(Module):
    def configure_optimizers(self) -> Any:
        return [
            torch.optim.SGD(self.net[0].parameters(), 0.1),
            torch.optim.SGD(self.net[2].parameters(), 0.1),
        ]


class Plateau(Module):
    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), 0.1)
        return {"optimizer": optimizer, "lr_scheduler": ReduceLROnPlateau(optimizer), "monitor": "val_loss"}


class HalfTrained(Module):
    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.net[2].parameters(), 0.1)


class Broken(Module):
    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), self.hparams.rate)


class Manual(Module):
    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False


class Hooked(Module):
    def on_before_optimizer_step(self, optimizer: Any) -> None:
        raise AssertionError


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (TwoOptimizers(), "must make one optimizer but made 2"),
        (Plateau(), "must make a scheduler that follows no metric but made a ReduceLROnPlateau"),
        (HalfTrained(), r"leaves out 2, such as 'net\.0\.weight' \(requires_grad_\(False\) freezes one\)"),
        (Broken(), "configure_optimizers must make an optimizer but failed: AttributeError: "),
        (Manual(), "has automatic_optimization = False"),
        (Hooked(), r"overrides on_before_optimizer_step, which a Trainer alone would call"),
        (nn.Linear(12, 3), "module must be a LightningModule with a training_step but is a Linear"),
    ],
)
def test_what_needs_a_trainer_is_refused(module: Any, message: str) -> None:
    with pytest.raises(TaskError, match=message):
        task_of(module)


def test_loaders_come_from_a_datamodule_or_the_module_where_none_are_given() -> None:
    class Data(lightning.LightningDataModule):
        def setup(self, stage: str) -> None:
            self.rows = TensorDataset(INPUTS, LABELS)

        def train_dataloader(self) -> Any:
            return DataLoader(self.rows, 8)

        def val_dataloader(self) -> Any:
            return [DataLoader(self.rows, 12)]

    class Loading(Module):
        def train_dataloader(self) -> Any:
            return loader(24)

    task = ac.from_lightning(Module(), Data())
    assert (task.train.batch_size, task.val.batch_size, task.test) == (8, 12, None)
    assert ac.from_lightning(Module(), Data(), train=loader(4)).train.batch_size == 4
    assert ac.from_lightning(Loading()).train.batch_size == 24
    with pytest.raises(TaskError, match="train must be given where neither a datamodule nor the module has"):
        ac.from_lightning(Module())
    with pytest.raises(TaskError, match="datamodule must be a LightningDataModule but is a DataLoader"):
        ac.from_lightning(Module(), loader())


def test_a_batch_that_the_module_changes_on_the_device_is_trained_on() -> None:
    class Changed(Module):
        def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
            return batch[0] * 0, batch[1]

        def training_step(self, batch: Any, *others: Any) -> Tensor:
            assert others == (0,) or others == (1,)
            assert not batch[0].any()
            return F.cross_entropy(self(batch[0]), batch[1])

    task = task_of(Changed(), train=loader(48))
    Trainer(task, 1).fit(task.model(), 1)


def test_a_run_goes_on_with_the_same_module_and_not_with_another() -> None:
    class Other(Module):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            return super().training_step(batch, batch_idx)["loss"] * 2

    torch.manual_seed(0)
    kept = Module()
    digests = []
    for module in (kept, kept, Module(), Other()):
        prepared = prepare(task_of(module, trained=False), Settings(objectives=("bytes",)))
        digests.append(identity(prepared)["digests"])
    assert digests[0] == digests[1] == digests[2]
    assert digests[3]["step"] != digests[0]["step"]
    weights = identity(prepare(task_of(kept), Settings(objectives=("bytes",))))["digests"]["weights"]
    assert weights is not None
